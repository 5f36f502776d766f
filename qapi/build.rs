//! Generates the types and tables of the interface from `schema/*.json`.

#[path = "generator"]
mod generator {
    pub mod model;
    pub mod parse;
    pub mod rust;
}

use generator::{model, parse, rust};

use std::path::Path;

/// The configuration symbols that `'if'` conditions of the schema may name and that hold.
const DEFINED: &[&str] = &["CONFIG_LINUX", "CONFIG_POSIX"];

fn main() {
    println!("cargo:rerun-if-changed=schema");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=generator");
    if let Err(message) = generate() {
        eprintln!("error: {message}");
        std::process::exit(1);
    }
}

fn generate() -> Result<(), String> {
    let io = |e: std::io::Error| e.to_string();
    let mut paths: Vec<_> = std::fs::read_dir("schema")
        .and_then(|dir| dir.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>())
        .map_err(io)?;
    paths.retain(|p| p.extension().is_some_and(|e| e == "json"));
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).map_err(io)?;
        let name = path.display().to_string();
        let exprs = parse::parse(&text).map_err(|e| format!("{name}: {e}"))?;
        files.push((name, exprs));
    }
    let schema = model::build(&files, DEFINED)?;
    let out = std::env::var("OUT_DIR").map_err(|e| e.to_string())?;
    std::fs::write(Path::new(&out).join("qapi.rs"), rust::emit(&schema)).map_err(io)
}
