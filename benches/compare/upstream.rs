//! The upstream of the comparison: answers by the model's name, as OpenRouter would, and does as
//! little as can be done.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PACE: Duration = Duration::from_millis(10);
const MODELS: [&str; 4] = ["plain", "burst", "paced", "held"];
const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                    transfer-encoding: chunked\r\n\r\n";
const LAST_CHUNK: &str = "0\r\n\r\n";

pub async fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            socket.set_nodelay(true).expect("a socket");
            // A connection that breaks is its client's to complain of.
            tokio::spawn(async move { serve(socket).await.unwrap_or_default() });
        }
    });
    address
}

async fn serve(mut socket: TcpStream) -> std::io::Result<()> {
    let plain = with_length(&plain());
    let (burst, events) = (burst(), events(20));
    let mut got = Vec::with_capacity(128 << 10);
    loop {
        got.clear();
        let head = loop {
            if let Some(at) = memchr::memmem::find(&got, b"\r\n\r\n") {
                break at + 4;
            }
            if socket.read_buf(&mut got).await? == 0 {
                return Ok(());
            }
        };
        let lower = String::from_utf8_lossy(&got[..head]).to_lowercase();
        let length = lower
            .split("content-length: ")
            .nth(1)
            .and_then(|rest| rest.split("\r\n").next().unwrap_or_default().parse::<usize>().ok());
        while got.len() < head + length.unwrap_or_default() {
            if socket.read_buf(&mut got).await? == 0 {
                return Ok(());
            }
        }
        let asks = |model: &str| {
            memchr::memmem::find(&got[head..], format!("\"bench/{model}\"").as_bytes()).is_some()
        };
        if lower.starts_with("get ") {
            socket.write_all(with_length(&models()).as_bytes()).await?;
        } else if asks("burst") {
            socket.write_all(burst.as_bytes()).await?;
        } else if asks("paced") {
            socket.write_all(HEAD.as_bytes()).await?;
            for event in &events {
                socket.write_all(event.as_bytes()).await?;
                tokio::time::sleep(PACE).await;
            }
            socket.write_all(LAST_CHUNK.as_bytes()).await?;
        } else if asks("held") {
            socket.write_all((HEAD.to_owned() + &events[0]).as_bytes()).await?;
        } else {
            socket.write_all(plain.as_bytes()).await?;
        }
    }
}

fn with_length(body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

fn models() -> String {
    let models = MODELS.map(|model| {
        format!(
            "{{\"id\":\"bench/{model}\",\"name\":\"{model}\",\"created\":1764547200,\
             \"context_length\":1000000,\"pricing\":{{\"prompt\":\"0.00000015\",\
             \"completion\":\"0.0000006\"}}}}"
        )
    });
    format!("{{\"data\":[{}]}}", models.join(","))
}

const USAGE: &str = "\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":16,\
                     \"total_tokens\":116,\"cost\":0.0000246}";

fn plain() -> String {
    format!(
        "{{\"id\":\"gen-1764547200-a1b2c3\",\"object\":\"chat.completion\",\"created\":1764547200,\
         \"model\":\"bench/plain\",\"provider\":\"Bench\",\"choices\":[{{\"index\":0,\
         \"message\":{{\"role\":\"assistant\",\"content\":\"The ledger is append-only, and every \
         balance is the sum of its entries.\"}},\"finish_reason\":\"stop\"}}],{USAGE}}}"
    )
}

/// The chunks of a stream: so many with a word, the finish, the usage, the end.
fn events(words: usize) -> Vec<String> {
    let event = |delta: &str, finish: &str, usage: &str| {
        format!(
            "data: {{\"id\":\"gen-1764547200-a1b2c3\",\"provider\":\"Bench\",\
             \"model\":\"bench/stream\",\"object\":\"chat.completion.chunk\",\
             \"created\":1764547200,\"choices\":[{{\"index\":0,\"delta\":{delta},\
             \"finish_reason\":{finish}}}]{usage}}}\n\n"
        )
    };
    let mut events: Vec<String> = (0..words)
        .map(|number| {
            let delta = format!("{{\"role\":\"assistant\",\"content\":\"word{number} \"}}");
            event(&delta, "null", "")
        })
        .collect();
    events.push(event("{\"content\":\"\"}", "\"stop\"", ""));
    events.push(event("{\"content\":\"\"}", "null", &format!(",{USAGE}")));
    events.push("data: [DONE]\n\n".to_owned());
    events.iter().map(|event| format!("{:x}\r\n{event}\r\n", event.len())).collect()
}

fn burst() -> String {
    let mut body = HEAD.to_owned();
    for event in events(100) {
        let _ = write!(body, "{event}");
    }
    body + LAST_CHUNK
}
