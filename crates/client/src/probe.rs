//! What listens at an address where no broker answers.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What HTTP/2 begins with: its preface, and settings that change nothing.
const HTTP_2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const HTTP_1: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// The type of the frame that every answer in HTTP/2 begins with, and where it stands.
const SETTINGS: (usize, u8) = (3, 4);

/// What is spoken at `address`, if it is surely not HTTP/2. `None` where it is, and where nothing
/// was said: a broker that just stops or starts is met like that too.
pub(crate) async fn not_http_2(address: &str) -> Option<&'static str> {
    let answer = first_bytes(address, HTTP_2).await;
    if answer.get(SETTINGS.0) == Some(&SETTINGS.1) {
        return None;
    }
    if !answer.is_empty() {
        return Some(spoken(&answer).unwrap_or("something that is not HTTP/2"));
    }
    // Some servers of HTTP/1 close such a connection without a word.
    spoken(&first_bytes(address, HTTP_1).await)
}

fn spoken(answer: &[u8]) -> Option<&'static str> {
    answer.starts_with(b"HTTP/1.").then_some("HTTP/1")
}

/// The beginning of the answer to `request`; empty when there was none.
async fn first_bytes(address: &str, request: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    if let Ok(mut stream) = TcpStream::connect(address).await
        && stream.write_all(request).await.is_ok()
    {
        let mut beginning = stream.take(9);
        // What came before an error counts.
        let _whole_or_not = beginning.read_to_end(&mut answer).await;
    }
    answer
}
