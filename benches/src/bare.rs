//! The limit of the gRPC paths: a server that does nothing, over the same messages.
//!
//! It drops what a produce stream brings and answers each request; a read stream gets the same
//! batch again and again; a single append is written to a file and synced.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::pin::Pin;

use bytes::Bytes;
use parking_lot::Mutex;
use tidelog_proto::v1::log_server::{Log, LogServer};
use tidelog_proto::v1::{
    AppendRequest, AppendResponse, AppendResult, DeleteRecordsRequest, DeleteRecordsResponse,
    FetchRequest, FetchResponse, InitProducerRequest, InitProducerResponse, ListOffsetsRequest,
    ListOffsetsResponse, ProduceRequest, ProduceResponse, ReadData, ReadRequest, ReadResponse,
    append_request, produce_response, read_request, read_response,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::append::reserved_file;
use crate::grpc::{CONNECTION_WINDOW, FRAME_MAX, STREAM_WINDOW};

/// Space that is taken for the file ahead, as a log does.
const FILE_BYTES: u64 = 256 << 20;
/// Bytes of one message of a read stream.
const READ_BYTES: usize = 1 << 20;

/// Serves until the process is killed.
pub(crate) fn serve(dir: &Path) -> anyhow::Result<()> {
    let file = reserved_file(&dir.join("bare"), FILE_BYTES)?;
    crate::broker::runtime()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        let connections = TcpListenerStream::new(listener).map(|connection| {
            let connection = connection?;
            connection.set_nodelay(true)?;
            Ok::<_, std::io::Error>(connection)
        });
        let written = Mutex::new((file, 0));
        let service = LogServer::new(Nothing { written }).max_decoding_message_size(64 << 20);
        Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_MAX)
            .add_service(service)
            .serve_with_incoming(connections)
            .await?;
        Ok(())
    })
}

/// A server that does next to nothing with what it gets.
struct Nothing {
    /// Where single appends go, and up to where it is written.
    written: Mutex<(File, u64)>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn appended() -> AppendResponse {
    let result = AppendResult {
        base_offset: Some(0),
        ..AppendResult::default()
    };
    AppendResponse {
        results: vec![result],
    }
}

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
            Ok(ProduceResponse {
                correlation_id: request.correlation_id,
                outcome: Some(produce_response::Outcome::Appended(appended())),
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn append(
        &self,
        request: Request<AppendRequest>,
    ) -> Result<Response<AppendResponse>, Status> {
        let Some(append_request::Payload::Batch(batch)) = request.into_inner().payload else {
            return Err(Status::invalid_argument("a batch is written"));
        };
        // On the thread that serves the connection: there is but one, and handing over costs more.
        let mut written = self.written.lock();
        let (file, end) = &mut *written;
        file.write_all_at(&batch, *end)
            .and_then(|()| file.sync_data())
            .map_err(|e| Status::internal(e.to_string()))?;
        *end += batch.len() as u64;
        Ok(Response::new(appended()))
    }

    async fn read(
        &self,
        requests: Request<Streaming<ReadRequest>>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let first = requests.into_inner().message().await?;
        // How much is wanted comes where a reader says how far it lets the server go ahead.
        let Some(read_request::Request::Start(start)) = first.and_then(|first| first.request)
        else {
            return Err(Status::invalid_argument("a start is wanted first"));
        };
        let batches = Bytes::from(vec![7; READ_BYTES]);
        let count = start.credit_bytes / READ_BYTES as u64;
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
        Err(Status::unimplemented("it is not measured"))
    }

    async fn fetch(
        &self,
        _request: Request<FetchRequest>,
    ) -> Result<Response<FetchResponse>, Status> {
        Err(Status::unimplemented("it is not measured"))
    }

    async fn list_offsets(
        &self,
        _request: Request<ListOffsetsRequest>,
    ) -> Result<Response<ListOffsetsResponse>, Status> {
        Err(Status::unimplemented("it is not measured"))
    }

    async fn delete_records(
        &self,
        _request: Request<DeleteRecordsRequest>,
    ) -> Result<Response<DeleteRecordsResponse>, Status> {
        Err(Status::unimplemented("it is not measured"))
    }
}
