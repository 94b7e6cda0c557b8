//! Simulations from one seed: a disk that fails as real ones do, and on it whole clusters in one thread.
//!
//! [`run_cluster`] runs the real code of replicas, logs and controllers over such disks, with a clock and a network
//! of its own, under faults that the seed draws, and checks what it did (`docs/simulation.md`). What follows here is
//! about the disk: a [`tidelog_disk::Disk`] in memory.
//!
//! Everything it decides comes from one seed, so a failing run is replayed by its seed and the
//! same calls in the same order.
//!
//! How data flows: a write changes the file's page cache, which reads see at once, and leaves
//! pending sector versions and length changes behind (`file.rs`). A sync moves them to the device.
//! A created, renamed or removed name is likewise pending until its directory is synced
//! (`names.rs`). [`SimDisk::crash`] draws what of all that reached the device, forgets the rest and
//! cuts off every handle; [`SimDisk::kill`] cuts off the handles only (`harm.rs`). Calls are
//! counted and made to fail in `faults.rs`; `disk.rs` and `handle.rs` implement the traits over
//! these parts and `state.rs`. [`contract::check_disk`] is the one suite that every `Disk` must pass.
//!
//! # What is modelled
//! - **Unsynced bytes** are lost, kept or torn at a power loss, sector by sector
//!   ([`SECTOR_BYTES`]), in any order. A sector shows its durable bytes or what the cache held
//!   after any one of the writes to it since.
//! - **Unsynced lengths**: the file has its durable length or any it had since, independently of
//!   which bytes arrived. Length changes of one file stay ordered. Bytes that a kept length covers
//!   and that never arrived are zeros. A lost cut leaves the old bytes, and sectors written after
//!   the cut may show among them.
//! - **Unsynced names** are kept or lost one by one; changes that share a name stay ordered, and a
//!   rename is atomic. A new directory's own name is no exception.
//! - **A failed sync** loses any part of what it was to write and leaves it marked clean: reads
//!   still show it, a later sync that succeeds does not save it. [`SimDisk::drop_caches`] makes
//!   reads show the truth.
//! - **A failed write** has written any part of its range, and a short one the first part, less than
//!   all; a failed create, rename, remove or
//!   change of length may have happened all the same.
//! - **A full disk**: [`SimDisk::set_free_bytes`], counted in sectors. Reserved space is never
//!   refused later; holes are not counted; space comes back when the name is removed.
//! - **A misdirected write** shows in the page cache where it belongs, and lies elsewhere on the
//!   device, in the same file or another; **a misdirected read** gives another place's bytes
//!   ([`SimDisk::misdirect_nth`]).
//! - **Hung calls**: [`SimDisk::hang`].
//! - **Damage from outside**: [`SimDisk::flip_bit`] and its neighbours.
//! - **Locks** end with the process that held them, and its handles never work again.
//!
//! # What is not modelled
//! - Tearing inside a sector.
//! - Loss of what a successful sync made durable: a lying device.
//! - Slow calls: a call returns at once or hangs.
//! - A name that fails to be created on a full disk, hard and symbolic links, permissions, `..`.
//! - A read through a map beyond the end of the file: where a real process ends with SIGBUS, this
//!   one panics.
//! - A thread of a "crashed" program that holds the [`SimDisk`] itself may open files anew; only
//!   handles and locks are cut off.

mod cluster;
pub mod contract;
mod disk;
mod faults;
mod file;
mod handle;
mod harm;
mod holds;
mod image;
mod names;
mod rng;
mod state;

pub use tidelog_controller::Planted as PlantedController;
pub use tidelog_replica::Planted;

pub use cluster::{ClusterOptions, ClusterStats, IdleCluster, IdleStats, run_cluster};
pub use disk::SimDisk;
pub use faults::{Astray, FailMode, InjectedError, OpFilter};
pub use holds::Hang;
pub use image::SECTOR_BYTES;
pub use rng::SimRng;
