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
        while self.bytes > self.budget {
            let oldest = self.entries.iter().filter(|(key, _)| !pinned(key)).min_by_key(|(_, entry)| entry.used).map(|(key, _)| *key);
            match oldest {
                Some(key) => drop(self.remove(&key)),
                None => return,
            }
        }
    }
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
