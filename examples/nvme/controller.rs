//! The controller of the NVMe example: it knows addresses on the bus and nothing else. It reads commands, PRPs and SGLs by
//! DMA, decodes them, and moves the bytes.

use std::sync::Mutex;

use granule::dma::convert::NvmeSgl;
use granule::units::{Iova, PAGE_BYTES};
use granule_backends::software::{AccessError, Engine, SoftwareDevice};

use super::{BLOCK, PAGE};

/// A command, 64 bytes, with the fields that matter here at their places.
pub struct Command {
    pub is_write: bool,
    pub is_sgl: bool,
    /// PRP1 and PRP2, or the SGL descriptor.
    pub data: [u64; 2],
    pub block: u64,
    pub blocks: u32,
}

impl Command {
    const WRITE: u8 = 1;
    const READ: u8 = 2;
    /// PSDT: an SGL in the data pointer.
    const SGL: u8 = 0x40;

    pub fn to_bytes(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[0] = if self.is_write { Self::WRITE } else { Self::READ };
        bytes[1] = if self.is_sgl { Self::SGL } else { 0 };
        bytes[24..32].copy_from_slice(&self.data[0].to_le_bytes());
        bytes[32..40].copy_from_slice(&self.data[1].to_le_bytes());
        bytes[40..48].copy_from_slice(&self.block.to_le_bytes());
        bytes[48..52].copy_from_slice(&(self.blocks - 1).to_le_bytes());
        bytes
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// The controller: it knows addresses on the bus and nothing else.
pub struct Controller {
    pub device: SoftwareDevice,
    pub disk: Mutex<Vec<u8>>,
    /// Entries that it read.
    pub entries: Mutex<u64>,
}

impl Controller {
    /// Fetches the command at an address and does what it says.
    pub fn ring(&self, command: Iova) -> Result<(), AccessError> {
        self.device.run(|engine| {
            let mut bytes = [0; 64];
            engine.dma_read(command, &mut bytes)?;
            let blocks = u64::from(u32::from_le_bytes(bytes[48..52].try_into().expect("4 bytes"))) + 1;
            let length = (blocks * BLOCK) as usize;
            let pieces = if bytes[1] & Command::SGL != 0 {
                let descriptor: [u8; 16] = bytes[24..40].try_into().expect("16 bytes");
                decode_sgl(engine, descriptor)?
            } else {
                decode_prp(engine, word(&bytes, 24), word(&bytes, 32), length)?
            };
            *self.entries.lock().expect("no panic") += pieces.len() as u64;
            assert_eq!(pieces.iter().map(|piece| piece.1).sum::<usize>(), length, "data for every block");
            let disk = &mut *self.disk.lock().expect("no panic");
            let mut at = (word(&bytes, 40) * BLOCK) as usize;
            for (addr, bytes_here) in pieces {
                let part = &mut disk[at..at + bytes_here];
                if bytes[0] == Command::WRITE {
                    engine.dma_read(Iova(addr), part)?;
                } else {
                    engine.dma_write(Iova(addr), part)?;
                }
                at += bytes_here;
            }
            Ok(())
        })
    }
}

/// Addresses and lengths from PRP entries, list pages read as they are needed.
fn decode_prp(
    engine: &mut Engine<'_>,
    prp1: u64,
    prp2: u64,
    length: usize,
) -> Result<Vec<(u64, usize)>, AccessError> {
    let first = (PAGE - prp1 as usize % PAGE).min(length);
    let mut pieces = vec![(prp1, first)];
    let mut left = length - first;
    if left > 0 && left <= PAGE {
        pieces.push((prp2, left));
        return Ok(pieces);
    }
    let mut list = prp2;
    while left > 0 {
        let mut page = [0u8; PAGE];
        engine.dma_read(Iova(list), &mut page)?;
        for index in 0..PAGE / 8 {
            let entry = word(&page, 8 * index);
            assert_eq!(entry % PAGE_BYTES, 0, "an entry of a list has no offset");
            if index == PAGE / 8 - 1 && left > PAGE {
                list = entry;
                break;
            }
            let part = left.min(PAGE);
            pieces.push((entry, part));
            left -= part;
            if left == 0 {
                break;
            }
        }
    }
    Ok(pieces)
}

/// Addresses and lengths from an SGL: data, or one last segment of data.
fn decode_sgl(engine: &mut Engine<'_>, descriptor: [u8; 16]) -> Result<Vec<(u64, usize)>, AccessError> {
    let data = |bytes: &[u8]| {
        assert_eq!(bytes[15], NvmeSgl::DATA, "a descriptor of data");
        (word(bytes, 0), u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes")) as usize)
    };
    if descriptor[15] == NvmeSgl::DATA {
        return Ok(vec![data(&descriptor)]);
    }
    assert_eq!(descriptor[15], NvmeSgl::LAST_SEGMENT);
    let length = u32::from_le_bytes(descriptor[8..12].try_into().expect("4 bytes")) as usize;
    let mut segment = vec![0; length];
    engine.dma_read(Iova(word(&descriptor, 0)), &mut segment)?;
    Ok(segment.chunks_exact(16).map(data).collect())
}
