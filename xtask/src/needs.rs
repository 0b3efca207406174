//! What the tests need beyond Rust, as a table: a new need is a new line. What is missing is installed through `apt`, or
//! the line is named that a person can type.

use crate::apt::{self, Package};
use crate::tool;

/// One thing that has to be on the machine.
struct Need {
    /// What it is and who wants it.
    what: &'static str,
    /// A command that succeeds where it is there.
    probe: (&'static str, &'static [&'static str]),
    /// The Debian package that brings it.
    package: &'static str,
    /// The release whose own version is too old: there it comes from the backports.
    backport_for: Option<&'static str>,
}

/// Some file of the driver is there, and if a Debian package brought it, one that has sparse buffers.
const LAVAPIPE: &str =
    "ls /usr/share/vulkan/icd.d /usr/local/share/vulkan/icd.d /etc/vulkan/icd.d 2>/dev/null \
    | grep -q '^lvp_icd' || exit 1
    version=$(dpkg-query --show --showformat '${Version}' mesa-vulkan-drivers 2>/dev/null) || exit 0
    dpkg --compare-versions \"$version\" ge 25";

const NEEDS: &[Need] = &[
    Need {
        what: "a C compiler and linker, for everything that is linked",
        probe: ("cc", &["--version"]),
        package: "build-essential",
        backport_for: None,
    },
    Need {
        what: "the Vulkan loader, for tests of the Vulkan backend",
        probe: ("sh", &["-c", "/sbin/ldconfig -p | grep -q libvulkan.so.1"]),
        package: "libvulkan1",
        backport_for: None,
    },
    Need {
        what: "lavapipe, the Vulkan driver for CPUs, for tests of the Vulkan backend",
        probe: ("sh", &["-c", LAVAPIPE]),
        package: "mesa-vulkan-drivers",
        backport_for: Some("bookworm"),
    },
    Need {
        what: "the Vulkan validation layer, which fails tests of the Vulkan backend",
        probe: ("ls", &["/usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json"]),
        package: "vulkan-validationlayers",
        backport_for: None,
    },
    Need {
        what: "the compiler of shaders, to compare them with their sources",
        probe: ("glslangValidator", &["--version"]),
        package: "glslang-tools",
        backport_for: None,
    },
    Need {
        what: "the validator of shaders",
        probe: ("spirv-val", &["--version"]),
        package: "spirv-tools",
        backport_for: None,
    },
];

/// Sees to it that every need is met.
///
/// # Errors
/// One sentence with the commands that a person can type.
pub fn meet() -> Result<(), String> {
    let is_met = |need: &Need| tool::works(need.probe.0, need.probe.1);
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| !is_met(need)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        println!("missing: {}", need.what);
    }
    let package = |need: &&Need| Package { name: need.package, backport_for: need.backport_for };
    apt::install(&missing.iter().map(package).collect::<Vec<_>>())?;
    match missing.iter().find(|need| !is_met(need)) {
        Some(need) => {
            Err(format!("{} is installed but `{}` still does not work", need.package, need.probe.0))
        }
        None => Ok(()),
    }
}
