//! Makes the client and the server of questions, with a codec of its own.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    let ask = Method::builder()
        .name("ask")
        .route_name("Ask")
        .comment("A question to a broker, without a link.")
        .input_type("tidelog_proto::internal::v1::PeerQuestion")
        .output_type("tidelog_proto::internal::v1::PeerAnswer")
        .codec_path("crate::ask::AskCodec")
        .build();
    let questions = Service::builder()
        .name("Questions")
        .package("tidelog.internal.v1")
        .comment("What a broker is asked without a link.")
        .method(ask)
        .build();
    Builder::new().compile(&[questions]);
}
