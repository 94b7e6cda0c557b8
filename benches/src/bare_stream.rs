//! The limit of the gRPC paths: a server that does nothing, over the same messages.
//!
//! `bare-stream produce` streams `ProduceRequest`s with an opaque batch to a server that drops them
//! and answers each; `bare-stream read` is sent `ReadData` of the same size. The server runs in a
//! process of its own, so that its CPU time can be told from the client's, as with a real broker.
//! Prints one JSON object.

use std::pin::Pin;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Parser, Subcommand};
use tidelog_proto::v1::log_client::LogClient;
use tidelog_proto::v1::log_server::{Log, LogServer};
use tidelog_proto::v1::{
    AppendRequest, AppendResponse, AppendResult, DeleteRecordsRequest, DeleteRecordsResponse,
    FetchRequest, FetchResponse, InitProducerRequest, InitProducerResponse, ListOffsetsRequest,
    ListOffsetsResponse, ProduceRequest, ProduceResponse, ReadData, ReadRequest, ReadResponse,
    ReadStart, append_request, produce_response, read_request, read_response,
};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Clone, Copy, Subcommand)]
enum Mode {
    /// Stream batches to the server.
    Produce(Load),
    /// Be sent batches.
    Read(Load),
    /// The server itself; started by the others.
    #[command(hide = true)]
    Serve(Load),
}

#[derive(Clone, Copy, clap::Args)]
struct Load {
    /// Bytes of one batch.
    #[arg(long, default_value_t = 128 << 10)]
    batch_size: usize,
    /// Bytes in all.
    #[arg(long, default_value_t = 2 << 30)]
    bytes: usize,
    /// Requests in flight.
    #[arg(long, default_value_t = 8)]
    in_flight: usize,
}

/// HTTP/2 windows as the broker sets them.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Args::parse().mode {
        Mode::Serve(load) => serve(load).await,
        Mode::Produce(load) => measure("produce", load).await,
        Mode::Read(load) => measure("read", load).await,
    }
}

async fn measure(mode: &str, load: Load) -> anyhow::Result<()> {
    let mut server = tokio::process::Command::new(std::env::current_exe()?)
        .args(["serve", "--batch-size", &load.batch_size.to_string()])
        .args(["--bytes", &load.bytes.to_string()])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = server
        .stdout
        .take()
        .context("the server's output is piped")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).await?;
    let channel = Channel::from_shared(format!("http://{}", line.trim()))?
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect()
        .await?;
    let mut log = LogClient::new(channel).max_decoding_message_size(64 << 20);
    let pid = server.id().context("the server runs")?;
    let cpu_before = cpu_seconds(pid)?;
    #[allow(clippy::disallowed_methods, reason = "this is a benchmark")]
    let began = Instant::now();
    let moved = match mode {
        "produce" => produce(&mut log, load).await?,
        _ => read(&mut log).await?,
    };
    let seconds = began.elapsed().as_secs_f64();
    let cpu = cpu_seconds(pid)? - cpu_before;
    #[allow(clippy::cast_precision_loss, reason = "figures for people")]
    let moved = moved as f64;
    let figures = serde_json::json!({
        "what": format!("bare tonic {mode} stream"),
        "batch_size": load.batch_size,
        "mib_per_s": moved / f64::from(1 << 20) / seconds,
        "server_cpu_s_per_gb": cpu / (moved / 1e9),
    });
    println!("{figures}");
    server.kill().await?;
    Ok(())
}

async fn produce(log: &mut LogClient<Channel>, load: Load) -> anyhow::Result<usize> {
    let (sender, requests) = mpsc::channel(load.in_flight);
    let count = load.bytes / load.batch_size;
    let batch = Bytes::from(vec![7; load.batch_size]);
    tokio::spawn(async move {
        for correlation_id in 0..count as u64 {
            let append = AppendRequest {
                topic: "bench".to_owned(),
                partition: Some(0),
                payload: Some(append_request::Payload::Batch(batch.clone())),
                ..AppendRequest::default()
            };
            let request = ProduceRequest {
                correlation_id,
                append: Some(append),
            };
            if sender.send(request).await.is_err() {
                return;
            }
        }
    });
    let mut answers = log
        .produce(ReceiverStream::new(requests))
        .await?
        .into_inner();
    let mut answered = 0;
    while answers.message().await?.is_some() {
        answered += 1;
    }
    if answered != count {
        bail!("{answered} answers to {count} requests");
    }
    Ok(count * load.batch_size)
}

async fn read(log: &mut LogClient<Channel>) -> anyhow::Result<usize> {
    let start = ReadRequest {
        request: Some(read_request::Request::Start(ReadStart::default())),
    };
    let mut data = log.read(tokio_stream::once(start)).await?.into_inner();
    let mut read = 0;
    while let Some(message) = data.message().await? {
        if let Some(read_response::Response::Data(data)) = message.response {
            read += data.batches.len();
        }
    }
    Ok(read)
}

async fn serve(load: Load) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let connections = TcpListenerStream::new(listener).map(|connection| {
        let connection = connection?;
        connection.set_nodelay(true)?;
        Ok::<_, std::io::Error>(connection)
    });
    let service = LogServer::new(Nothing { load }).max_decoding_message_size(64 << 20);
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(service)
        .serve_with_incoming(connections)
        .await?;
    Ok(())
}

/// A server that does nothing with what it gets.
struct Nothing {
    load: Load,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Log for Nothing {
    type ProduceStream = Answers<ProduceResponse>;
    type ReadStream = Answers<ReadResponse>;

    async fn produce(
        &self,
        requests: Request<Streaming<ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStream>, Status> {
        let answers = requests.into_inner().map(|request| {
            let request = request?;
            let result = AppendResult {
                base_offset: Some(0),
                ..AppendResult::default()
            };
            let appended = AppendResponse {
                results: vec![result],
            };
            Ok(ProduceResponse {
                correlation_id: request.correlation_id,
                outcome: Some(produce_response::Outcome::Appended(appended)),
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn read(
        &self,
        _requests: Request<Streaming<ReadRequest>>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let batches = Bytes::from(vec![7; self.load.batch_size]);
        let count = self.load.bytes / self.load.batch_size;
        let answers = tokio_stream::iter(0..count).map(move |_| {
            let data = ReadData {
                batches: batches.clone(),
                ..ReadData::default()
            };
            Ok(ReadResponse {
                response: Some(read_response::Response::Data(data)),
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn init_producer(
        &self,
        _request: Request<InitProducerRequest>,
    ) -> Result<Response<InitProducerResponse>, Status> {
        Err(Status::unimplemented("only streams are measured"))
    }

    async fn append(
        &self,
        _request: Request<AppendRequest>,
    ) -> Result<Response<AppendResponse>, Status> {
        Err(Status::unimplemented("only streams are measured"))
    }

    async fn fetch(
        &self,
        _request: Request<FetchRequest>,
    ) -> Result<Response<FetchResponse>, Status> {
        Err(Status::unimplemented("only streams are measured"))
    }

    async fn list_offsets(
        &self,
        _request: Request<ListOffsetsRequest>,
    ) -> Result<Response<ListOffsetsResponse>, Status> {
        Err(Status::unimplemented("only streams are measured"))
    }

    async fn delete_records(
        &self,
        _request: Request<DeleteRecordsRequest>,
    ) -> Result<Response<DeleteRecordsResponse>, Status> {
        Err(Status::unimplemented("only streams are measured"))
    }
}

/// User and system time of a process, in seconds (Linux).
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses, which may hold blanks.
    let (_, fields) = stat
        .rsplit_once(") ")
        .context("/proc/PID/stat has a name")?;
    let ticks = |at: usize| -> anyhow::Result<f64> {
        Ok(fields
            .split(' ')
            .nth(at)
            .context("/proc/PID/stat has 52 fields")?
            .parse()?)
    };
    // Fields 14 and 15, in hundredths of a second on every Linux.
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}
