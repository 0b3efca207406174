use crate::trace::{BlockMap, Event, EventKind};

/// Moments that are told apart.
pub const BINS: usize = 240;
/// Ranges of addresses that are told apart while a trace is read; more make the ranges twice as large.
const MOST_ROWS: usize = 1024;

/// How often which addresses were touched when: a grid of moments and of equally large ranges of addresses.
///
/// Time and addresses begin as fine as can be and grow coarser by doubling, so that nothing has to be known before. Only
/// ranges that were touched are kept.
#[derive(Debug)]
pub struct Timeline {
    /// log2 of the pages of a range.
    shift: u32,
    map: BlockMap,
    rows: Vec<[Count; BINS]>,
    first_ns: Option<u64>,
    bin_ns: u64,
}

#[derive(Clone, Copy, Default, Debug)]
struct Count {
    device: u32,
    cpu: u32,
}

/// One range of addresses.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its first page: address / 4096.
    pub page: u64,
    /// Touches by the device, moment by moment.
    pub device: Vec<u64>,
    /// Touches by the CPU.
    pub cpu: Vec<u64>,
}

impl Default for Timeline {
    fn default() -> Self {
        Self { shift: 0, map: BlockMap::default(), rows: Vec::new(), first_ns: None, bin_ns: 1 }
    }
}

impl Timeline {
    /// For a trace whose first and last time are known, all moments are used; otherwise at least half of them.
    pub fn between(first_ns: u64, last_ns: u64) -> Self {
        let bin_ns = (last_ns.saturating_sub(first_ns) / BINS as u64) + 1;
        Self { first_ns: Some(first_ns), bin_ns, ..Self::default() }
    }

    /// Enters the next events: touches, faults and migrations.
    pub fn feed(&mut self, events: &[Event]) {
        for event in events {
            let pages = match event.kind {
                EventKind::Access | EventKind::DeviceFault | EventKind::CpuFault => 1,
                EventKind::Migration => u64::from(event.pages),
                EventKind::Unmap | EventKind::Advice | EventKind::Map => continue,
            };
            let bin = self.bin(event.time_ns);
            let mut page = event.page;
            let end = event.page + pages;
            while page < end {
                let next = ((page >> self.shift) + 1).checked_shl(self.shift).unwrap_or(end).min(end);
                let row = self.row(page);
                let count = &mut self.rows[row][bin];
                let of = if event.kind == EventKind::CpuFault { &mut count.cpu } else { &mut count.device };
                *of = of.saturating_add((next - page) as u32);
                page = next;
            }
        }
    }

    #[inline]
    fn bin(&mut self, time_ns: u64) -> usize {
        let since = time_ns.saturating_sub(*self.first_ns.get_or_insert(time_ns));
        while since / self.bin_ns >= BINS as u64 {
            self.bin_ns *= 2;
            for row in &mut self.rows {
                for at in 0..BINS {
                    let of = |at: usize| row.get(at).copied().unwrap_or_default();
                    let (one, other) = (of(2 * at), of(2 * at + 1));
                    row[at] = one.plus(other);
                }
            }
        }
        (since / self.bin_ns) as usize
    }

    #[inline]
    fn row(&mut self, page: u64) -> usize {
        let row = self.map.get_or_add(page >> self.shift) as usize;
        if row < self.rows.len() {
            return row;
        }
        self.rows.push([Count::default(); BINS]);
        if self.rows.len() <= MOST_ROWS {
            return row;
        }
        self.coarser();
        self.row(page)
    }

    /// Makes ranges twice as large until half of the rows are free.
    #[cold]
    fn coarser(&mut self) {
        while self.rows.len() > MOST_ROWS / 2 && self.shift < u64::BITS - 1 {
            self.shift += 1;
            let (map, rows) = (std::mem::take(&mut self.map), std::mem::take(&mut self.rows));
            for (number, counts) in (0..).zip(rows) {
                let row = self.map.get_or_add(map.block(number) >> 1) as usize;
                if row == self.rows.len() {
                    self.rows.push(counts);
                } else {
                    self.rows[row].iter_mut().zip(counts).for_each(|(of, more)| *of = of.plus(more));
                }
            }
        }
    }

    /// At most so many ranges by address, and the pages of each.
    pub fn rows(mut self, most: usize) -> (Vec<Row>, u64) {
        let merged = |rows: Vec<Row>| {
            let mut wide: Vec<Row> = Vec::new();
            for row in rows {
                match wide.last_mut() {
                    Some(last) if last.page >> 1 == row.page >> 1 => {
                        last.device.iter_mut().zip(row.device).for_each(|(of, more)| *of += more);
                        last.cpu.iter_mut().zip(row.cpu).for_each(|(of, more)| *of += more);
                    }
                    _ => wide.push(row),
                }
            }
            wide.iter_mut().for_each(|row| row.page >>= 1);
            wide
        };
        // Counted in ranges until the end.
        let mut rows: Vec<Row> = (0..)
            .zip(&self.rows)
            .map(|(number, counts)| Row {
                page: self.map.block(number),
                device: counts.iter().map(|count| u64::from(count.device)).collect(),
                cpu: counts.iter().map(|count| u64::from(count.cpu)).collect(),
            })
            .collect();
        rows.sort_unstable_by_key(|row| row.page);
        while rows.len() > most.max(1) && self.shift < u64::BITS - 1 {
            rows = merged(rows);
            self.shift += 1;
        }
        rows.iter_mut().for_each(|row| row.page <<= self.shift);
        (rows, 1 << self.shift)
    }

    /// When the first moment begins, and how long each is.
    pub fn times(&self) -> (u64, u64) {
        (self.first_ns.unwrap_or(0), self.bin_ns)
    }
}

impl Count {
    fn plus(self, other: Self) -> Self {
        Self { device: self.device.saturating_add(other.device), cpu: self.cpu.saturating_add(other.cpu) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Access;

    #[test]
    fn every_touch_is_in_one_cell_however_coarse() {
        for (pages, step_ns) in [(10, 1), (5000, 1), (300_000, 1000)] {
            let mut timeline = Timeline::default();
            let event = |at: u64| Event::access(7 + at * step_ns, (at * 7919) % pages * 513, Access::Read, 0);
            let events: Vec<_> = (0..20_000).map(event).chain([Event::cpu(9, 0, Access::Read)]).collect();
            events.chunks(100).for_each(|events| timeline.feed(events));
            let (first_ns, bin_ns) = timeline.times();
            assert_eq!(first_ns, 7);
            assert!(bin_ns * (BINS as u64) > 20_000 * step_ns && bin_ns < 20_000 * step_ns);
            let (rows, each) = timeline.rows(100);
            assert!(rows.len() <= 100 && rows.is_sorted_by(|a, b| a.page + each <= b.page));
            assert_eq!(rows.iter().flat_map(|row| &row.device).sum::<u64>(), 20_000);
            assert_eq!(rows.iter().flat_map(|row| &row.cpu).sum::<u64>(), 1);
            let last = events.iter().map(|event| event.page).max().expect("events");
            let row = rows.last().expect("rows");
            assert!((row.page..row.page + each).contains(&last));
        }
    }

    #[test]
    fn migrations_and_the_last_addresses_are_in_it() {
        let mut timeline = Timeline::between(0, 1000);
        let last = (1 << 52) - 4096;
        timeline.feed(&[
            Event::range(500, last, 4096, EventKind::Migration),
            Event::range(600, 0, 10, EventKind::Migration),
            Event::range(700, 0, 10, EventKind::Unmap),
        ]);
        let (rows, _) = timeline.rows(4);
        assert_eq!(rows.iter().flat_map(|row| &row.device).sum::<u64>(), 4106);
        assert_eq!((rows[0].page, rows.len() > 1), (0, true));
    }
}
