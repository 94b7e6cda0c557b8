//! Where configuration comes from, and who wins.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::ffi::OsString;
use std::path::Path;

use clap::{Args, Command, FromArgMatches};
use tidelog_server::config::{ConfigError, Resolved, Source, explain_json, explain_table, resolve};
use tidelog_server::{Config, ServeArgs};

fn args(words: &[&str]) -> ServeArgs {
    let words = std::iter::once(&"serve").chain(words);
    let matches = ServeArgs::augment_args(Command::new("serve")).get_matches_from(words);
    ServeArgs::from_arg_matches(&matches).unwrap()
}

fn environment(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    variables
        .iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

fn file(dir: &Path, text: &str) {
    std::fs::write(dir.join("tidelog.toml"), text).unwrap();
}

fn source<'a>(resolved: &'a Resolved, key: &str) -> (&'a str, &'a Source) {
    let found = resolved
        .explained
        .iter()
        .find(|explained| explained.key == key)
        .unwrap();
    (&found.value, &found.source)
}

#[test]
fn a_flag_wins_over_the_environment_that_over_the_file_that_over_the_default() {
    let dir = tempfile::tempdir().unwrap();
    file(
        dir.path(),
        "grpc_addr = \"127.0.0.1:1\"\nhttp_addr = \"127.0.0.1:1\"\nlog_level = \"warn\"\n\
         connections_max = 7\n",
    );
    let variables = environment(&[
        ("TIDELOG_GRPC_ADDR", "127.0.0.1:2"),
        ("TIDELOG_HTTP_ADDR", "127.0.0.1:2"),
        ("TIDELOG_BROKER", "of another command"),
        ("PATH", "/bin"),
    ]);
    let resolved = resolve(
        &args(&["--grpc-addr", "127.0.0.1:3"]),
        variables,
        dir.path(),
    )
    .unwrap();
    let config = &resolved.config;
    assert_eq!((config.grpc_addr.port(), config.http_addr.port()), (3, 2));
    assert_eq!(
        (config.log_level.as_str(), config.limits.connections_max),
        ("warn", 7)
    );
    assert_eq!(
        config.limits.streams_max,
        Config::default().limits.streams_max
    );
    assert!(resolved.warnings.is_empty(), "{:?}", resolved.warnings);

    let flag = Source::Flag("--grpc-addr".to_owned());
    assert_eq!(source(&resolved, "grpc_addr"), ("127.0.0.1:3", &flag));
    let variable = Source::Environment("TIDELOG_HTTP_ADDR".to_owned());
    assert_eq!(source(&resolved, "http_addr"), ("127.0.0.1:2", &variable));
    let path = Source::File(dir.path().join("tidelog.toml"));
    assert_eq!(source(&resolved, "connections_max"), ("7", &path));
    assert_eq!(source(&resolved, "streams_max"), ("256", &Source::Default));

    let table = explain_table(&resolved.explained);
    assert!(table.lines().next().unwrap().starts_with("KEY "));
    let line = table
        .lines()
        .find(|line| line.starts_with("http_addr "))
        .unwrap();
    assert!(
        line.ends_with("127.0.0.1:2     environment TIDELOG_HTTP_ADDR"),
        "{line}"
    );
    let json = explain_json(&resolved.explained);
    let lines: Vec<serde_json::Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let line = lines
        .iter()
        .find(|line| line["key"] == "grpc_addr")
        .unwrap();
    let expected = serde_json::json!({
        "key": "grpc_addr", "value": "127.0.0.1:3", "source": "flag", "place": "--grpc-addr",
    });
    assert_eq!(*line, expected);
    let line = lines
        .iter()
        .find(|line| line["key"] == "streams_max")
        .unwrap();
    assert_eq!(
        (&line["source"], &line["place"]),
        (&"default".into(), &serde_json::Value::Null)
    );
}

#[test]
fn the_documented_defaults_hold() {
    let dir = tempfile::tempdir().unwrap();
    let resolved = resolve(&args(&[]), environment(&[]), dir.path()).unwrap();
    assert_eq!(resolved.config, Config::default());
    assert_eq!(resolved.config.data_dir, Path::new("./tidelog-data"));
    assert_eq!(resolved.config.grpc_addr.to_string(), "127.0.0.1:9400");
    assert_eq!(resolved.config.http_addr.to_string(), "127.0.0.1:9401");
    assert!(
        resolved
            .explained
            .iter()
            .all(|explained| explained.source == Source::Default)
    );
    assert!(resolved.config.open_to_network().is_empty());
    let open = args(&["--grpc-addr", "0.0.0.0:9400"]);
    let open = resolve(&open, environment(&[]), dir.path()).unwrap().config;
    assert_eq!(open.open_to_network().len(), 1);
}

#[test]
fn an_unknown_key_fails_with_a_suggestion() {
    let dir = tempfile::tempdir().unwrap();
    file(
        dir.path(),
        "log_level = \"warn\"\ngrpc-adr = \"127.0.0.1:1\"\n",
    );
    let error = resolve(&args(&[]), environment(&[]), dir.path()).unwrap_err();
    assert!(matches!(&error, ConfigError::UnknownKey { key, .. } if key == "grpc-adr"));
    let words = error.to_string();
    assert!(words.contains("did you mean \"grpc_addr\"?"), "{words}");
    assert!(words.contains("data_dir, grpc_addr, http_addr"), "{words}");
    assert!(words.contains("tidelog.toml"), "{words}");

    file(dir.path(), "[grpc]\naddr = \"127.0.0.1:1\"\n");
    let error = resolve(&args(&[]), environment(&[]), dir.path()).unwrap_err();
    assert!(matches!(&error, ConfigError::UnknownKey { key, .. } if key == "grpc"));

    let nearly = environment(&[("TIDELOG_DATADIR", "/x")]);
    file(dir.path(), "");
    let warned = resolve(&args(&[]), nearly, dir.path()).unwrap();
    assert_eq!(warned.warnings.len(), 1);
    assert!(
        warned.warnings[0].contains("TIDELOG_DATA_DIR"),
        "{:?}",
        warned.warnings
    );
}

#[test]
fn a_bad_value_is_refused_with_what_is_allowed_and_who_gave_it() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |flags: &[&str], variables: &[(&str, &str)], text: &str| {
        file(dir.path(), text);
        let error = resolve(&args(flags), environment(variables), dir.path()).unwrap_err();
        assert!(matches!(error, ConfigError::Value { .. }), "{error:?}");
        error.to_string()
    };
    let words = refused(&["--grpc-addr", "9400"], &[], "");
    assert!(
        words.starts_with("grpc_addr cannot be \"9400\" (from flag --grpc-addr)"),
        "{words}"
    );
    assert!(words.contains("such as 127.0.0.1:9400"), "{words}");
    let words = refused(&[], &[("TIDELOG_LOG_FORMAT", "xml")], "");
    assert!(
        words.contains("from environment TIDELOG_LOG_FORMAT"),
        "{words}"
    );
    assert!(words.ends_with("allowed is text or json"), "{words}");
    let words = refused(&[], &[], "connections_max = 0");
    assert!(
        words.contains("allowed is a number from 1 to 1000000"),
        "{words}"
    );
    let words = refused(&[], &[], "request_bytes_max = [1]");
    assert!(words.contains("a value of type array"), "{words}");
    // Also one that another source overrules: it is a mistake all the same.
    refused(&["--threads", "1"], &[("TIDELOG_THREADS", "many")], "");

    file(dir.path(), "");
    let small = args(&["--in-flight-bytes-max", "1MiB"]);
    let error = resolve(&small, environment(&[]), dir.path()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "in_flight_bytes_max (1048576) must be at least request_bytes_max (16777216)"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let failed = |name: &str| {
        let args = args(&["--config", &at(name)]);
        resolve(&args, environment(&[]), dir.path()).unwrap_err()
    };
    assert!(matches!(failed("none.toml"), ConfigError::File { .. }));
    std::fs::write(at("bad.toml"), "data_dir = \n").unwrap();
    let error = failed("bad.toml");
    assert!(matches!(error, ConfigError::Syntax { .. }));
    assert!(error.to_string().contains("line 1"), "{error}");
    std::fs::write(at("large.toml"), "#".repeat(1 << 20) + "#").unwrap();
    assert!(matches!(
        failed("large.toml"),
        ConfigError::FileTooLarge { max: 1_048_576, .. }
    ));
    std::fs::write(at("good.toml"), "threads = 3\n").unwrap();
    let good = args(&["--config", &at("good.toml")]);
    assert_eq!(
        resolve(&good, environment(&[]), dir.path())
            .unwrap()
            .config
            .threads,
        3
    );
}
