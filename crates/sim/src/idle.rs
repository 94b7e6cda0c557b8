//! What many partitions take that have nothing to do.

use std::process::ExitCode;

use tidelog_sim::IdleCluster;

/// Simulated time that is measured.
const SECONDS: u32 = 60;
const REPLICAS: u32 = 3;

/// Says what so many take, their simulated disks included.
pub(crate) fn report(partitions: u32) -> ExitCode {
    match measured(partitions) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("what a process takes is not known: {e}");
            ExitCode::FAILURE
        }
    }
}

fn measured(partitions: u32) -> std::io::Result<String> {
    let replicas = partitions * REPLICAS;
    let (memory, cpu) = (anonymous_kib()?, cpu_seconds()?);
    let mut cluster = IdleCluster::new(partitions);
    cluster.elect(partitions);
    let founding = cpu_seconds()? - cpu;
    let (elected, before) = (cluster.stats(), cpu_seconds()?);
    cluster.run(u64::from(SECONDS) * 1000);
    let busy = cpu_seconds()? - before;
    let memory = anonymous_kib()? - memory;
    let stats = cluster.stats();
    let a_node = f64::from(SECONDS) * f64::from(REPLICAS);
    Ok(format!(
        "{partitions} partitions with {REPLICAS} replicas each, idle for {SECONDS} simulated seconds\n\
         memory, simulated disks included: {:.1} KiB a replica\n\
         processor: {:.2} % of a core a node, {:.2} us a replica and second\n\
         between nodes: {} frames, {} letters; {} elections\n\
         before: {:.1} s of processor time to found them, and {} elections in {:.1} simulated seconds",
        memory / f64::from(replicas),
        busy / a_node * 100.0,
        busy * 1e6 / f64::from(SECONDS) / f64::from(replicas),
        stats.frames - elected.frames,
        stats.letters - elected.letters,
        stats.elections - elected.elections,
        founding,
        elected.elections,
        std::time::Duration::from_millis(elected.millis).as_secs_f64(),
    ))
}

/// Anonymous memory of this process.
fn anonymous_kib() -> std::io::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    number(kib)
}

/// User and system time of this process so far.
fn cpu_seconds() -> std::io::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The second field is the program's name in parentheses, which may hold blanks.
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let mut fields = fields.split(' ').skip(11);
    // In hundredths of a second on every Linux.
    Ok((number(fields.next())? + number(fields.next())?) / 100.0)
}

fn number(field: Option<&str>) -> std::io::Result<f64> {
    let number = field.and_then(|field| field.parse().ok());
    number.ok_or_else(|| std::io::Error::other("/proc has another form"))
}
