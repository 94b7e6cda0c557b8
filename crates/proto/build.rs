//! Compiles `proto/` with a compiler written in Rust: no `protoc` is needed.

use std::error::Error;
use std::path::PathBuf;

use prost::Message;

const PUBLIC: [&str; 5] = [
    "tidelog/v1/record.proto",
    "tidelog/v1/topics.proto",
    "tidelog/v1/log.proto",
    "tidelog/v1/cluster.proto",
    "tidelog/v1/groups.proto",
];
const INTERNAL: [&str; 4] = [
    "tidelog/internal/v1/ask.proto",
    "tidelog/internal/v1/metadata.proto",
    "tidelog/internal/v1/peer.proto",
    "tidelog/internal/v1/broker.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed={}", root.display());

    let public = protox::compile(PUBLIC, [&root])?;
    // What reflection serves: the public API only.
    std::fs::write(out.join("tidelog_descriptor.bin"), public.encode_to_vec())?;

    // The codec looks messages up by their names.
    let mut prost = tonic_prost_build::Config::new();
    prost.enable_type_names();
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::codec::BoundedCodec")
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        .compile_fds_with_config(public, prost)?;
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .build_client(false)
        .build_server(false)
        .compile_fds(protox::compile(INTERNAL, [&root])?)?;
    Ok(())
}
