//! `fault-sim devices`: every device of every backend, what it can do, and how a run would use it.
//!
//! # Rules
//! 1. A backend that has no device here is named, with the sentence that says why. That is no failure: the software
//!    device is always there.
//! 2. What is printed is what the backend itself goes by when it opens a device: nothing is found out a second time.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;
use granule::ports::Device;
use granule_backends::software::SoftwareDevice;
use serde::Serialize;

use crate::FAILED;
use crate::shaders;
use crate::size::Size;

/// What `devices` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// A device. The names of the fields are the keys of the JSON object; they are not changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Listed {
    /// What `run --backend` calls its backend.
    pub backend: &'static str,
    /// What `run --device` calls it, besides its name; none where there is one device only.
    pub index: Option<usize>,
    /// Its name.
    pub name: String,
    /// Its driver.
    pub driver: String,
    /// What kind of processor it is.
    pub kind: &'static str,
    /// Whether `run` can use it.
    pub usable: bool,
    /// How a run would use it; none if it cannot.
    pub mode: Option<&'static str>,
    /// Why so, or why not at all.
    pub why: String,
    /// Bytes of memory of its own; none where a run says how much.
    pub memory_bytes: Option<u64>,
    /// What it can do, by name.
    pub can: Vec<&'static str>,
    /// What it cannot do, by name.
    pub cannot: Vec<&'static str>,
}

impl Listed {
    /// Sorts capabilities into what is there and what is not.
    pub fn abilities(mut self, abilities: &[(&'static str, bool)]) -> Self {
        for (name, there) in abilities {
            if *there { &mut self.can } else { &mut self.cannot }.push(name);
        }
        self
    }
}

/// Every device, and the backends that have none here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Devices {
    /// The devices, those of one backend together.
    pub devices: Vec<Listed>,
    /// Backends without a device.
    pub absent: Vec<Absent>,
}

/// A backend without a device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Absent {
    /// Its name.
    pub backend: &'static str,
    /// Why there is none.
    pub why: String,
}

/// Looks at every backend.
///
/// # Errors
/// A sentence, if not even the software device can be made.
pub fn look() -> Result<Devices, String> {
    let mut all = Devices { devices: vec![software()?], absent: Vec::new() };
    match shaders::devices() {
        Ok(devices) => all.devices.extend(devices),
        Err(error) => all.absent.push(Absent { backend: "vulkan", why: error.to_string() }),
    }
    Ok(all)
}

fn software() -> Result<Listed, String> {
    let device = SoftwareDevice::builder().build().map_err(|error| error.to_string())?;
    let caps = device.caps();
    let listed = Listed {
        backend: "software",
        index: None,
        name: "software".to_owned(),
        driver: "part of this program".to_owned(),
        kind: "cpu",
        usable: true,
        mode: Some("engines"),
        why: "its engines are threads with page tables and an IOMMU of their own".to_owned(),
        memory_bytes: None,
        can: Vec::new(),
        cannot: Vec::new(),
    };
    Ok(listed.abilities(&[
        ("driver-free", caps.driver_free),
        ("links-any-memory", caps.links_any),
        ("atomic64", true),
    ]))
}

/// Prints the devices.
pub fn main(options: &Options) -> ExitCode {
    let all = match look() {
        Ok(all) => all,
        Err(sentence) => {
            eprintln!("{sentence}");
            return ExitCode::from(FAILED);
        }
    };
    if options.json {
        println!("{}", serde_json::json!(all));
    } else {
        print!("{}", table(&all));
    }
    ExitCode::SUCCESS
}

fn table(all: &Devices) -> String {
    let mut text = String::new();
    for device in &all.devices {
        let index = device.index.map_or(String::new(), |index| format!(" {index}"));
        let _ = writeln!(text, "{}{index}: {}", device.backend, device.name);
        let mut row = |name, what: &str| {
            if !what.is_empty() {
                let _ = writeln!(text, "  {name:<10} {what}");
            }
        };
        row("driver", &device.driver);
        row("kind", device.kind);
        row("mode", &format!("{}: {}", device.mode.unwrap_or("none"), device.why));
        let memory = device.memory_bytes.map_or("as a run says".to_owned(), |bytes| Size(bytes).to_string());
        row("memory", &memory);
        row("can", &device.can.join(", "));
        row("cannot", &device.cannot.join(", "));
    }
    for absent in &all.absent {
        let _ = writeln!(text, "{}: none; {}", absent.backend, absent.why);
    }
    text
}
