//! The HTTP port: metrics and health.

use std::collections::BTreeSet;

use crate::support::{Fixture, raw};

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let mut f = Fixture::start().await;
    f.create("t", 2).await;
    // The broker's own log of topics is counted too.
    let before = f.metric("tidelog_append_records_total").await;
    f.append("t", 1, &["a", "b"]).await;
    f.values("t", 1, 0).await;
    let (code, head, body) = f.get("/metrics").await;
    assert_eq!(code, 200);
    assert!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    let mut names = BTreeSet::new();
    for line in body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let kind = comment.split(' ').next().unwrap();
            assert!(matches!(kind, "HELP" | "TYPE"), "{line}");
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        assert!(labels.ends_with('}'), "{line}");
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(
            name.starts_with("tidelog_") && name.chars().all(is_name),
            "{line}"
        );
        names.insert(name.to_owned());
    }
    for name in [
        "tidelog_append_records_total",
        "tidelog_append_bytes_total",
        "tidelog_append_seconds_bucket",
        "tidelog_sync_seconds_count",
        "tidelog_fetch_seconds_sum",
        "tidelog_log_start_offset",
        "tidelog_log_end_offset",
        "tidelog_log_segments",
        "tidelog_grpc_connections",
    ] {
        assert!(names.contains(name), "{name} in {names:?}");
    }
    let partition = |name: &str| format!("{name}{{partition=\"1\",topic=\"t\"}}");
    assert!((f.metric(&partition("tidelog_log_end_offset")).await - 2.0).abs() < f64::EPSILON);
    let appended = f.metric("tidelog_append_records_total").await - before;
    assert!((appended - 2.0).abs() < f64::EPSILON, "{appended}");
}

#[tokio::test]
async fn health_is_told() {
    let f = Fixture::start().await;
    let (code, head, body) = f.get("/health/live").await;
    assert_eq!((code, body.as_str()), (200, "{\"live\":true}\n"));
    assert!(head.contains("content-type: application/json"));
    let (code, _, body) = f.get("/health/ready").await;
    assert_eq!(
        (code, body.as_str()),
        (200, "{\"ready\":true,\"state\":\"ready\",\"faults\":[]}\n")
    );
}

#[tokio::test]
async fn what_is_not_there_is_told_in_json() {
    let f = Fixture::start().await;
    let (code, head, body) = f.get("/nothing").await;
    assert_eq!(code, 404);
    assert!(head.contains("content-type: application/json"));
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (&body["error"], &body["path"]),
        (&"not found".into(), &"/nothing".into())
    );
    let answer = raw(
        f.server.http_addr(),
        b"DELETE /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(
        answer.starts_with(b"HTTP/1.1 405"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
}

#[tokio::test]
async fn garbage_is_refused_and_the_next_is_served() {
    let f = Fixture::start().await;
    let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(1 << 20));
    for garbage in [
        &b"\x00\x01\x02garbage\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\n",
        long.as_bytes(),
    ] {
        let answer = raw(f.server.http_addr(), garbage).await;
        assert!(
            !answer.starts_with(b"HTTP/1.1 2"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
        assert_eq!(f.get("/health/live").await.0, 200);
    }
}

#[tokio::test]
async fn idle_connections_do_not_close_the_port_to_others() {
    let f = Fixture::start().await;
    let mut idle = Vec::new();
    for _ in 0..300 {
        let addr = f.server.http_addr();
        idle.push(tokio::net::TcpStream::connect(addr).await.unwrap());
    }
    for _ in 0..3 {
        assert_eq!(f.get("/health/live").await.0, 200);
    }
}
