//! Makes the service's client and server: frames are no protobuf, so that it is described here.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    let link = Method::builder()
        .name("link")
        .route_name("Link")
        .comment("Frames of one broker for another; what comes back are answers to its pings.")
        .input_type("crate::Frame")
        .output_type("crate::Frame")
        .codec_path("crate::FrameCodec")
        .client_streaming()
        .server_streaming()
        .build();
    let ask = Method::builder()
        .name("ask")
        .route_name("Ask")
        .comment("A question to a broker, without a link.")
        .input_type("tidelog_proto::internal::v1::PeerQuestion")
        .output_type("tidelog_proto::internal::v1::PeerAnswer")
        .codec_path("crate::ask::AskCodec")
        .build();
    let peer = Service::builder()
        .name("Peer")
        .package("tidelog.internal.v1")
        .comment("What brokers of a cluster tell each other.")
        .method(link)
        .build();
    // By itself, since a server has one limit for what it takes: questions are short, and frames are not.
    let questions = Service::builder()
        .name("Questions")
        .package("tidelog.internal.v1")
        .comment("What a broker is asked without a link.")
        .method(ask)
        .build();
    Builder::new().compile(&[peer, questions]);
}
