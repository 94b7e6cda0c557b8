//! Writing what is left of a group of segments into one file.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_disk::{Disk, DiskError, DiskFile, OpenHow};
use tidelog_record::{BATCH_HEADER_LEN, BatchHeader};

use super::{Compaction, CompactionError, Left, Pace, Scan, keeps_internal};
use crate::header::{COMPACTED_HEADER_LEN, CompactedSegment, SegmentHeader};
use crate::index::{IndexEntry, SegmentIndex};
use crate::log::remove_if_there;
use crate::options::LogOptions;
use crate::roll::encode_header;
use crate::segment::{LogEnd, SEGMENT_BYTES_LIMIT, SealedEnd, Segment, cleaned_path, segment_path};
use crate::walk::{corruption, pass};

/// What is left of a group of segments, in a file beside them, synced.
#[derive(Debug)]
pub struct Compacted {
    /// Oldest first.
    pub(super) replaced: Vec<Arc<Segment>>,
    pub(super) segment: Arc<Segment>,
    pub(super) index: SegmentIndex,
    /// Where the file lies before it is installed.
    pub(super) beside: PathBuf,
}

impl Compacted {
    /// The length of the file, in bytes.
    pub fn len_bytes(&self) -> u64 {
        super::plan::len_of(&self.segment)
    }

    /// Where the file lies before it is installed; to be removed when it never is.
    pub fn beside(&self) -> &Path {
        &self.beside
    }
}

/// How much is gathered before it is written.
const WRITE_LEN: usize = 1 << 20;

/// Writes what is left of `group`. `None` when it is as good as it was.
pub(super) fn rewrite(
    run: &mut Compaction,
    group: &[Arc<Segment>],
    pace: &mut dyn Pace,
) -> Result<Option<Compacted>, CompactionError> {
    let disk = run.shared.disk.clone();
    let base = group[0].header.base_offset;
    let beside = cleaned_path(&run.shared.dir, base);
    let written = write(run, &*disk, group, &beside, pace);
    if !matches!(written, Ok(Some(_))) {
        // What stays is removed by the next run or start.
        if let Err(e) = remove_if_there(&*disk, &beside) {
            tracing::warn!(error = %e, "a compacted segment that is not used was not removed");
        }
    }
    written
}

fn write(
    run: &mut Compaction,
    disk: &dyn Disk,
    group: &[Arc<Segment>],
    beside: &Path,
    pace: &mut dyn Pace,
) -> Result<Option<Compacted>, CompactionError> {
    let first = &group[0].header;
    let last = group.last().expect("a group has segments");
    let end = last
        .sealed_end()
        .expect("only sealed segments are compacted");
    let mut compacted = CompactedSegment {
        last_sequence: last
            .header
            .compacted
            .map_or(last.header.sequence, |compacted| compacted.last_sequence),
        // What it is, is known at the end.
        len: u64::MAX,
        chain: 0,
        end_offset: end.offset,
        end_index: end.index,
        clean_end: run.covered.min(end.offset),
    };
    let mut out = Output::create(
        disk,
        beside,
        first,
        compacted,
        run.options.index_interval_bytes,
    )?;
    for segment in group {
        let file = segment.file(disk)?;
        let mut scan = Scan::new(&*file, segment);
        while let Some((header, bytes)) = scan.next(pace)? {
            if header.attributes.is_control() {
                if keeps_internal(&header, &bytes) {
                    out.push(&header, &bytes, pace)?;
                }
                continue;
            }
            match run.left_of(&scan, &header, bytes.clone())? {
                Left::All => out.push(&header, &bytes, pace)?,
                Left::Nothing => {}
                Left::Part(bytes) => {
                    let header = BatchHeader::decode(&bytes, bytes.len());
                    let header =
                        header.map_err(|e| corruption(&segment.path, &scan.before, e.into()))?;
                    out.push(&header, &bytes, pace)?;
                }
            }
        }
        run.held.push(file);
    }

    out.flush(pace)?;
    compacted.len = u64::from(out.end.position);
    compacted.chain = out.end.chain;
    if group.len() == 1 && first.compacted == Some(compacted) {
        return Ok(None);
    }
    let header = SegmentHeader {
        compacted: Some(compacted),
        ..first.clone()
    };
    let (file, index) = out.finish(&header)?;
    let sealed = SealedEnd::of_compacted(&compacted, index.last().map_or(0, |end| end.position));
    let path = segment_path(&run.shared.dir, header.base_offset);
    let segment = Segment::sealed(path, header, header_len(), sealed);
    // Until the rename its name leads elsewhere.
    segment.hold(file);
    Ok(Some(Compacted {
        replaced: group.to_vec(),
        segment: Arc::new(segment),
        index,
        beside: beside.to_owned(),
    }))
}

/// Where the first batch of a compacted segment begins.
fn header_len() -> u32 {
    u32::try_from(COMPACTED_HEADER_LEN).expect("a few hundred bytes")
}

/// A compacted segment in the making. Its header comes last: without it the file is nothing.
struct Output<'a> {
    path: &'a Path,
    file: Arc<dyn DiskFile>,
    compacted: CompactedSegment,
    end: LogEnd,
    index: SegmentIndex,
    interval: u32,
    waiting: Vec<u8>,
}

impl<'a> Output<'a> {
    fn create(
        disk: &dyn Disk,
        path: &'a Path,
        first: &SegmentHeader,
        compacted: CompactedSegment,
        interval: u32,
    ) -> Result<Self, DiskError> {
        remove_if_there(disk, path)?;
        let header = SegmentHeader {
            compacted: Some(compacted),
            ..first.clone()
        };
        let end = LogEnd::after_header(&header, &encode_header(&header));
        Ok(Self {
            path,
            file: disk.open(path, OpenHow::CreateNew)?,
            compacted,
            end,
            index: SegmentIndex::new(Segment::index_base(&header)),
            // A read reaches from one entry to another, whatever less is asked for.
            interval: interval.min(LogOptions::default().index_interval_bytes),
            waiting: Vec::with_capacity(WRITE_LEN),
        })
    }

    /// Adds a batch, by the rules by which it will be read.
    fn push(
        &mut self,
        header: &BatchHeader,
        bytes: &[u8],
        pace: &mut dyn Pace,
    ) -> Result<(), CompactionError> {
        self.index
            .push_if_due(&self.end, header_len(), self.interval);
        let before = self.end;
        pass(
            &mut self.end,
            header,
            Some(&bytes[BATCH_HEADER_LEN..]),
            Some(&self.compacted),
        )
        .map_err(|what| corruption(self.path, &before, what))?;
        if self.end.position > SEGMENT_BYTES_LIMIT {
            let path = self.path.to_owned();
            return Err(CompactionError::TooLong { path });
        }
        if self.waiting.len() + bytes.len() > WRITE_LEN {
            self.flush_before(&before, pace)?;
        }
        self.waiting.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self, pace: &mut dyn Pace) -> Result<(), CompactionError> {
        let end = self.end;
        self.flush_before(&end, pace)
    }

    /// Writes what waits, which ends at `end`.
    fn flush_before(&mut self, end: &LogEnd, pace: &mut dyn Pace) -> Result<(), CompactionError> {
        let len = self.waiting.len() as u64;
        if len > 0 {
            pace.write(len)?;
            let at = u64::from(end.position) - len;
            self.file.write_at(at, &[IoSlice::new(&self.waiting)])?;
            self.waiting.clear();
        }
        Ok(())
    }

    /// Writes the header and syncs the file.
    fn finish(
        mut self,
        header: &SegmentHeader,
    ) -> Result<(Arc<dyn DiskFile>, SegmentIndex), DiskError> {
        self.file
            .write_at(0, &[IoSlice::new(&encode_header(header))])?;
        self.file.sync_data()?;
        let mut end = self.end;
        end.settle(header.compacted.as_ref());
        self.index.push_end(IndexEntry::at(&end));
        Ok((self.file, self.index))
    }
}
