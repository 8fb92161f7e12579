//! A hub on this machine, as far as `hf-hub` needs one: model information, files by range, large ones with their SHA-256.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

/// What it does and has seen.
#[derive(Default)]
pub struct State {
    /// Files by name.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Files of which every answer breaks off after that many bytes.
    pub breaks: BTreeMap<String, usize>,
    /// Files whose bytes are changed on the way, once each.
    pub spoils: Vec<String>,
    /// Status of every answer, if not the usual.
    pub status: Option<u16>,
    /// Requests: path, and where the range began.
    pub seen: Vec<(String, usize)>,
}

pub struct Server {
    pub url: String,
    pub state: Arc<Mutex<State>>,
}

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl Server {
    /// Serves the files of `folder` as the model `org/name`.
    pub fn of(folder: &Path) -> Server {
        let mut files = BTreeMap::new();
        collect(folder, "", &mut files);
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || answer(stream, &state));
            }
        });
        Server { url, state }
    }

    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// The requests for a file since the last call that were more than a look at its size.
    pub fn ranges(&self, name: &str) -> Vec<usize> {
        let state = self.state.lock().unwrap();
        let own = state.seen.iter().filter(|(path, _)| path.ends_with(&format!("/{name}")));
        own.map(|(_, start)| *start).collect()
    }
}

fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            collect(&entry.path(), &format!("{name}/"), files);
        } else {
            files.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut request = String::new();
    if reader.read_line(&mut request).is_err() {
        return;
    }
    let path = request.split(' ').nth(1).unwrap_or("").to_owned();
    let mut range = None;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() || line.trim().is_empty() {
            break;
        }
        let line = line.to_lowercase();
        if let Some(value) = line.strip_prefix("range: bytes=") {
            let (from, to) = value.trim().split_once('-').unwrap();
            range = Some((from.parse::<usize>().unwrap(), to.parse::<usize>().ok()));
        }
    }
    let mut state = state.lock().unwrap();
    // A look at a file's size asks for its first byte.
    if !matches!(range, Some((_, Some(_)))) {
        state.seen.push((path.clone(), range.map_or(0, |r| r.0)));
    }
    let status = |stream: &mut TcpStream, code: u16| {
        let _ = write!(stream, "HTTP/1.1 {code} Status\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    if let Some(code) = state.status {
        return status(&mut stream, code);
    }
    if path.starts_with("/api/models/org/name/revision/") {
        let siblings: Vec<_> = state.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "siblings": siblings, "sha": COMMIT }).to_string();
        let _ = write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        return;
    }
    let name = path.strip_prefix("/org/name/resolve/").and_then(|rest| Some(rest.split_once('/')?.1.to_owned()));
    let Some((name, bytes)) = name.and_then(|name| state.files.get(&name).map(|bytes| (name, bytes.clone()))) else {
        return status(&mut stream, 404);
    };
    let etag = match name.ends_with(".safetensors") {
        true => Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect(),
        false => format!("{:040x}", Sha256::digest(&bytes)[..8].iter().fold(0u64, |n, &b| n << 8 | u64::from(b))),
    };
    let (start, end) = range.map_or((0, bytes.len()), |(from, to)| (from, to.map_or(bytes.len(), |to| (to + 1).min(bytes.len()))));
    if start >= bytes.len() {
        return status(&mut stream, 416);
    }
    let whole = matches!(range, Some((_, None)));
    let mut part = bytes[start..end].to_vec();
    if whole && let Some(at) = state.spoils.iter().position(|one| *one == name) {
        state.spoils.remove(at);
        *part.last_mut().unwrap() ^= 1;
    }
    let sent = if whole { state.breaks.get(&name).copied().unwrap_or(part.len()).min(part.len()) } else { part.len() };
    drop(state);
    let _ = write!(
        stream,
        "HTTP/1.1 206 Partial\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{}\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nConnection: close\r\n\r\n",
        part.len(),
        end - 1,
        bytes.len()
    );
    let _ = stream.write_all(&part[..sent]);
    let _ = stream.flush();
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = reader.read(&mut [0; 16]);
}
