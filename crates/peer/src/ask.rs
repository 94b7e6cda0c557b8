//! Questions to a broker to which there is no link yet.

use std::marker::PhantomData;
use std::time::Duration;

use prost::Message;
use thiserror::Error;
use tidelog_proto::internal::v1::{PeerAnswer, PeerQuestion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use crate::generated::questions_client::QuestionsClient;

/// The longest question, and the longest answer.
pub const ASK_BYTES_MAX: usize = 256 << 10;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AskError {
    /// It is no address.
    #[error("{address:?} is no host and port")]
    Address {
        /// What it was.
        address: String,
    },
    /// Nobody answers there.
    #[error("it cannot be reached: {why}")]
    Unreachable {
        /// What the system says.
        why: String,
    },
    /// Nothing came in time.
    #[error("it does not answer")]
    Silent,
    /// What listens there is another port, of a broker or of something else.
    #[error("it is not the cluster port of a broker, but a port for {speaks}")]
    NotClusterPort {
        /// What it is for.
        speaks: &'static str,
    },
    /// What answers is no broker, or one that does not know the question.
    #[error("it refuses to answer: {why}")]
    Refused {
        /// What it says.
        why: String,
    },
}

/// Asks the broker at `address`, a host and a port, over a connection of its own.
///
/// # Errors
/// [`AskError`], after `within` at the latest.
pub async fn ask(
    address: &str,
    question: PeerQuestion,
    within: Duration,
) -> Result<PeerAnswer, AskError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let endpoint = endpoint.map_err(|_| AskError::Address {
        address: address.to_owned(),
    })?;
    let asked = async {
        let channel = endpoint.tcp_nodelay(true).connect().await;
        let channel = channel.map_err(|e| AskError::Unreachable { why: root(&e) })?;
        let mut client = QuestionsClient::new(channel).max_decoding_message_size(ASK_BYTES_MAX);
        match client.ask(question).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(refused(address, &status).await),
        }
    };
    timeout(within, asked)
        .await
        .unwrap_or(Err(AskError::Silent))
}

/// Why whoever listens at `address` did not answer.
async fn refused(address: &str, status: &Status) -> AskError {
    // A cluster port knows the question.
    if status.code() == Code::Unimplemented {
        return AskError::NotClusterPort { speaks: "gRPC" };
    }
    // A server of HTTP/1 closes what begins HTTP/2, most often without a word.
    let is_broken = std::error::Error::source(status).is_some();
    if is_broken && speaks_http_1(address).await.unwrap_or(false) {
        return AskError::NotClusterPort { speaks: "HTTP/1" };
    }
    AskError::Refused {
        why: status.message().chars().take(300).collect(),
    }
}

async fn speaks_http_1(address: &str) -> std::io::Result<bool> {
    let mut io = TcpStream::connect(address).await?;
    io.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    let mut begins = [0; 7];
    io.read_exact(&mut begins).await?;
    Ok(&begins == b"HTTP/1.")
}

/// What is at the bottom of an error: the rest says that there is one.
fn root(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Messages of protobuf. That none is longer than [`ASK_BYTES_MAX`] is checked before any of it is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AskCodec<E, D>(PhantomData<(E, D)>);

impl<E, D> Default for AskCodec<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E, D> Codec for AskCodec<E, D>
where
    E: Message + 'static,
    D: Message + Default + 'static,
{
    type Encode = E;
    type Decode = D;
    type Encoder = AskEncoder<E>;
    type Decoder = AskDecoder<D>;

    fn encoder(&mut self) -> AskEncoder<E> {
        AskEncoder(PhantomData)
    }

    fn decoder(&mut self) -> AskDecoder<D> {
        AskDecoder(PhantomData)
    }
}

/// Writes one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AskEncoder<E>(PhantomData<E>);

impl<E: Message> Encoder for AskEncoder<E> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, message: E, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let encoded = message.encode(out);
        encoded.map_err(|e| Status::internal(e.to_string()))
    }
}

/// Reads one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AskDecoder<D>(PhantomData<D>);

impl<D: Message + Default> Decoder for AskDecoder<D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        let message = D::decode(bytes);
        let message = message.map_err(|e| Status::invalid_argument(e.to_string()))?;
        Ok(Some(message))
    }
}
