//! Decoded pictures within a budget of bytes; what was not used for longest goes first.

use std::collections::HashMap;
use std::hash::Hash;

/// Values by key, each with its size and when it was last used.
#[derive(Debug)]
pub struct Cache<K, V> {
    budget: u64,
    bytes: u64,
    clock: u64,
    entries: HashMap<K, Entry<V>>,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    bytes: u64,
    used: u64,
}

impl<K: Hash + Eq + Copy, V> Cache<K, V> {
    /// An empty cache of at most `budget` bytes, besides what is pinned.
    pub fn new(budget: u64) -> Cache<K, V> {
        Cache { budget, bytes: 0, clock: 0, entries: HashMap::new() }
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts `value` in, replacing what was there.
    pub fn insert(&mut self, key: K, value: V, bytes: u64) {
        self.remove(&key);
        self.clock += 1;
        self.bytes += bytes;
        self.entries.insert(key, Entry { value, bytes, used: self.clock });
    }

    /// Whether `key` is there. Does not count as use.
    pub fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// The value, without counting as use.
    pub fn peek(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// Counts as use of `key`.
    pub fn touch(&mut self, key: &K) {
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(key) {
            entry.used = self.clock;
        }
    }

    /// All keys and values, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, entry)| (key, &entry.value))
    }

    /// Takes one out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.remove(key)?;
        self.bytes -= entry.bytes;
        Some(entry.value)
    }

    /// Keeps only what `keep` says.
    pub fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.entries.retain(|key, _| keep(key));
        self.bytes = self.entries.values().map(|entry| entry.bytes).sum();
    }

    /// Drops what was used longest ago, but nothing that is `pinned`, until the budget is kept.
    pub fn shrink(&mut self, pinned: impl Fn(&K) -> bool) {
        self.shrink_to(self.budget, pinned);
    }

    /// Drops what was used longest ago, but nothing that is `pinned`, until at least `bytes` are free of it. How many are.
    pub fn free(&mut self, bytes: u64, pinned: impl Fn(&K) -> bool) -> u64 {
        let before = self.bytes;
        self.shrink_to(before.saturating_sub(bytes), pinned);
        before - self.bytes
    }

    /// Bytes of what is not `pinned`.
    pub fn spare(&self, pinned: impl Fn(&K) -> bool) -> u64 {
        self.entries.iter().filter(|(key, _)| !pinned(key)).map(|(_, entry)| entry.bytes).sum()
    }

    fn shrink_to(&mut self, most: u64, pinned: impl Fn(&K) -> bool) {
        while self.bytes > most {
            let oldest = self.entries.iter().filter(|(key, _)| !pinned(key)).min_by_key(|(_, entry)| entry.used).map(|(key, _)| *key);
            match oldest {
                Some(key) => drop(self.remove(&key)),
                None => return,
            }
        }
    }
}

/// What makes room for a decode that lacks so many bytes: bytes of pictures that are out of view, of which there are `spare`, and whether the weights
/// that are kept for the next prompt go, too. Nothing where even both are too little.
pub fn give_up(lacking: u64, spare: u64, kept: u64) -> Option<(u64, bool)> {
    match lacking {
        _ if lacking > spare.saturating_add(kept) => None,
        _ if lacking <= spare => Some((lacking, false)),
        _ => Some((spare.min(lacking - kept.min(lacking)), true)),
    }
    .filter(|&(pictures, weights)| pictures > 0 || weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::rc::Rc;

    #[test]
    fn the_least_recently_used_goes_first_and_the_pinned_stay() {
        let mut cache = Cache::new(100);
        for key in 0..4 {
            cache.insert(key, key, 30);
        }
        cache.touch(&0);
        cache.shrink(|_| false);
        assert_eq!((cache.bytes(), cache.contains(&0), cache.contains(&1)), (90, true, false));
        cache.insert(9, 9, 80);
        cache.shrink(|&key| key != 3);
        assert!(!cache.contains(&3) && cache.contains(&0) && cache.contains(&9));
        assert_eq!(cache.bytes(), 140, "what is on the screen may pass the budget");
        cache.shrink(|_| false);
        assert_eq!((cache.bytes(), cache.contains(&9)), (80, true));
    }

    #[test]
    fn room_for_a_decode_costs_no_more_than_it_takes_and_nothing_in_vain() {
        assert_eq!(give_up(50, 100, 200), Some((50, false)), "pictures out of view first");
        assert_eq!(give_up(150, 100, 200), Some((0, true)), "the weights alone");
        assert_eq!(give_up(250, 100, 200), Some((50, true)));
        assert_eq!(give_up(301, 100, 200), None, "in vain");
        assert_eq!((give_up(1, 0, 0), give_up(0, 9, 9)), (None, None));
        let mut cache = Cache::new(1000);
        for key in 0..4 {
            cache.insert(key, key, 30);
        }
        assert_eq!(cache.spare(|&key| key == 0), 90);
        assert_eq!(cache.free(40, |&key| key == 0), 60);
        assert!(cache.contains(&0) && cache.contains(&3) && cache.bytes() == 60);
        assert_eq!(cache.free(1000, |&key| key == 0), 30, "what is in view stays");
    }

    proptest! {
        #[test]
        fn bytes_are_those_of_the_values_held(
            acts in proptest::collection::vec((0u8..5, 0u32..12, 1u64..50), 0..80)
        ) {
            let alive = Rc::new(());
            let mut cache = Cache::new(120);
            for (act, key, bytes) in acts {
                match act {
                    0 | 1 => cache.insert(key, (alive.clone(), bytes), bytes),
                    2 => drop(cache.remove(&key)),
                    3 => cache.touch(&key),
                    _ => cache.retain(|k| k % 3 != key % 3),
                }
                cache.shrink(|_| false);
                prop_assert!(cache.bytes() <= 120);
                prop_assert_eq!(cache.bytes(), cache.iter().map(|(_, (_, bytes))| bytes).sum::<u64>());
                prop_assert_eq!(Rc::strong_count(&alive) - 1, cache.iter().count());
            }
        }
    }
}
