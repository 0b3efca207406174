//! The SPIR-V in the tree is what its sources compile to.
#![cfg(feature = "vulkan")]

mod vulkan_support;

use std::path::Path;
use std::process::Command;

use vulkan_support::on_ci;

/// The compiler whose bytes are in the tree: others are as right, and write other bytes.
const COMPILER: &str = "11:12.0.0";

/// What a tool says; `None` if it is not installed.
fn tool(name: &str, arguments: &[&str]) -> Option<(bool, String)> {
    let out = Command::new(name).args(arguments).output().ok()?;
    let said = [out.stdout, out.stderr].concat();
    Some((out.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[test]
fn the_spirv_in_the_tree_is_compiled_from_its_source() {
    let version = tool("glslangValidator", &["--version"]).map(|(_, said)| said);
    let found = version.as_deref().and_then(|said| said.lines().next()).unwrap_or("none");
    if !found.contains(COMPILER) || tool("spirv-val", &["--version"]).is_none() {
        let why = format!("needs glslangValidator {COMPILER} (found: {found}) and spirv-val");
        assert!(!on_ci(), "{why}");
        println!("skipped: {why}");
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let entries = std::fs::read_dir(&folder).expect("the folder of the shaders");
    let sources: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "comp"))
        .collect();
    assert!(sources.len() >= 8, "only {} shaders", sources.len());
    for source in sources {
        let name = source.file_stem().expect("a name").to_string_lossy().into_owned();
        let made = std::env::temp_dir().join(format!("granule-{}-{name}.spv", std::process::id()));
        let (source, to) = (source.to_string_lossy(), made.to_string_lossy());
        let arguments = ["--quiet", "-V", "--target-env", "vulkan1.2", "-o", &to, &source];
        let (good, said) = tool("glslangValidator", &arguments).expect("the compiler starts");
        assert!(good, "{name}: {said}");
        let (good, said) =
            tool("spirv-val", &["--target-env", "vulkan1.2", &to]).expect("the validator starts");
        assert!(good, "{name}: {said}");
        let bytes = std::fs::read(&made).expect("the compiled shader");
        std::fs::remove_file(&made).expect("it can be removed");
        let in_tree = std::fs::read(folder.join(format!("{name}.spv"))).expect("the shader in the tree");
        assert!(bytes == in_tree, "{name}.spv is not what {name}.comp compiles to; run shaders/compile.sh");
    }
}
