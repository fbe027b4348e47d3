//! The few parts of HTTP/1.1 that the scripted upstream needs, on a bare socket.
//!
//! Reading and writing go through `&TcpStream`, so that a script can write and watch for the peer's
//! hang-up at the same time, and can reset the connection.

use std::io;

use tokio::net::TcpStream;

/// One request as it came over the wire.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Path and query, undecoded.
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

/// Waits for bytes and adds them to `buffer`. 0 is the peer's end.
pub async fn read_some(stream: &TcpStream, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let mut space = vec![0_u8; 16 * 1024];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut space) {
            Ok(read) => {
                buffer.extend_from_slice(&space[..read]);
                return Ok(read);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes all of `bytes`, telling `progress` how many went out each time.
pub async fn write_all(
    stream: &TcpStream,
    mut bytes: &[u8],
    mut progress: impl FnMut(usize),
) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(written) => {
                progress(written);
                bytes = &bytes[written..];
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads the next request; `None` when the peer closed instead. What follows it stays in `buffer`.
pub async fn read_request(stream: &TcpStream, buffer: &mut Vec<u8>) -> Option<Request> {
    let head_len = loop {
        if let Some(at) = find(buffer, b"\r\n\r\n") {
            break at + 4;
        }
        if read_some(stream, buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&buffer[..head_len]).into_owned();
    buffer.drain(..head_len);
    let mut request = parse_head(&head);
    request.body = match request.header("content-length").map(str::to_string) {
        Some(length) => read_exactly(stream, buffer, length.parse().ok()?).await?,
        None if request.header("transfer-encoding").is_some() => {
            read_chunked(stream, buffer).await?
        }
        None => Vec::new(),
    };
    Some(request)
}

fn parse_head(head: &str) -> Request {
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let method = first.next().unwrap_or_default().to_string();
    let target = first.next().unwrap_or_default().to_string();
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_string(), value.trim().to_string()))
        .collect();
    Request { method, target, headers, body: Vec::new() }
}

async fn read_exactly(stream: &TcpStream, buffer: &mut Vec<u8>, length: usize) -> Option<Vec<u8>> {
    while buffer.len() < length {
        if read_some(stream, buffer).await.ok()? == 0 {
            return None;
        }
    }
    Some(buffer.drain(..length).collect())
}

async fn read_chunked(stream: &TcpStream, buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut decoder = Dechunker::default();
    let mut body = Vec::new();
    loop {
        let used = decoder.feed(buffer, &mut body);
        buffer.drain(..used);
        if decoder.done() {
            return Some(body);
        }
        if read_some(stream, buffer).await.ok()? == 0 {
            return None;
        }
    }
}

pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// Takes the chunked transfer encoding off, whatever the pieces it comes in. Used on both sides: by
/// the upstream for requests, by the raw client for answers.
#[derive(Default)]
pub struct Dechunker {
    state: Chunked,
}

#[derive(Default, PartialEq)]
enum Chunked {
    #[default]
    Size,
    Data(usize),
    AfterData,
    Trailer,
    Done,
    Broken,
}

impl Dechunker {
    /// Decodes what it can of `input` into `body`, and says how many bytes it used.
    pub fn feed(&mut self, input: &[u8], body: &mut Vec<u8>) -> usize {
        let mut used = 0;
        while let Some(step) = self.step(&input[used..], body) {
            used += step;
        }
        used
    }

    /// One element; `None` when more input is needed, or none is wanted.
    fn step(&mut self, input: &[u8], body: &mut Vec<u8>) -> Option<usize> {
        match self.state {
            Chunked::Data(left) => {
                let taken = left.min(input.len());
                body.extend_from_slice(&input[..taken]);
                self.state =
                    if taken == left { Chunked::AfterData } else { Chunked::Data(left - taken) };
                (taken > 0).then_some(taken)
            }
            Chunked::Done | Chunked::Broken => None,
            Chunked::Size | Chunked::AfterData | Chunked::Trailer => {
                let line_len = find(input, b"\r\n")?;
                self.line(&input[..line_len]);
                Some(line_len + 2)
            }
        }
    }

    fn line(&mut self, line: &[u8]) {
        self.state = match self.state {
            Chunked::Size => match chunk_size(line) {
                Some(0) => Chunked::Trailer,
                Some(size) => Chunked::Data(size),
                None => Chunked::Broken,
            },
            Chunked::AfterData if line.is_empty() => Chunked::Size,
            Chunked::Trailer if line.is_empty() => Chunked::Done,
            Chunked::Trailer => Chunked::Trailer,
            _ => Chunked::Broken,
        };
    }

    /// The zero chunk and its trailer have been seen.
    pub fn done(&self) -> bool {
        self.state == Chunked::Done
    }
}

fn chunk_size(line: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(line).ok()?;
    let digits = text.split(';').next()?.trim();
    usize::from_str_radix(digits, 16).ok()
}

#[test]
fn chunked_bodies_are_decoded_wherever_they_are_split() {
    // The last chunk begins with a line break: data must never be taken for framing.
    let encoded = b"5\r\nhello\r\n1;x=y\r\n \r\n7\r\n\r\nworld\r\n0\r\nTrailer: 1\r\n\r\n";
    for split in 0..=encoded.len() {
        let mut decoder = Dechunker::default();
        let mut body = Vec::new();
        let mut pending = encoded[..split].to_vec();
        let used = decoder.feed(&pending, &mut body);
        pending.drain(..used);
        assert!(!decoder.done() || split == encoded.len(), "split at {split}: done too early");
        pending.extend_from_slice(&encoded[split..]);
        decoder.feed(&pending, &mut body);
        assert_eq!(body, b"hello \r\nworld", "split at {split}");
        assert!(decoder.done(), "split at {split}");
    }
}
