//! `qemu-img info`.

use super::open::{self, Image, Request};
use super::{Outcome, args};
use lockstep_bin::getopt::{Spec, opt};
use lockstep_block::text::image_text;
use lockstep_block::{Graph, OpenFlags, json};
use serde_json::Value;

const OPTIONS: &[Spec] = &[
    opt('h', "help", false),
    opt('f', "format", true),
    opt(' ', "image-opts", false),
    opt('b', "backing-chain", false),
    opt('U', "force-share", false),
    opt(' ', "object", true),
    opt(' ', "output", true),
];

pub fn run(arguments: &[String]) -> Outcome {
    let Some(parsed) = args::parse("info", arguments, OPTIONS)? else { return Ok(()) };
    let as_json = args::wants_json("info", &parsed)?;
    args::refuse(&parsed, &["object"])?;
    let name = args::one_filename("info", &parsed)?.to_owned();
    let chain = parsed.has("backing-chain");
    let flags =
        OpenFlags { no_backing: true, no_io: true, force_share: parsed.has("force-share"), ..open::read_only() };
    let request = Request {
        name: &name,
        image_opts: parsed.has("image-opts"),
        format: parsed.value("format"),
        flags,
        writethrough: false,
    };
    let list = open::run(|graph| collect(graph, request, chain))?;
    args::print(&if as_json {
        let value = if chain { Value::Array(list) } else { list.into_iter().next().unwrap_or_default() };
        json::to_pretty(&value) + "\n"
    } else {
        list.iter().map(|i| image_text(i, "", "/")).collect::<Vec<_>>().join("\n")
    })
}

async fn collect(graph: Graph, first: Request<'_>, chain: bool) -> Result<Vec<Value>, u8> {
    let mut list = Vec::new();
    let mut seen: Vec<String> = Vec::new();
    let (mut name, mut format) = (first.name.to_owned(), first.format.map(str::to_owned));
    let mut image_opts = first.image_opts;
    loop {
        if seen.contains(&name) {
            args::report(&format!("Backing file '{name}' creates an infinite loop."));
            return Err(super::FAILURE);
        }
        seen.push(name.clone());
        let request = Request { name: &name, image_opts, format: format.as_deref(), ..first };
        let Image { node, backend } = open::image(&graph, request).await?;
        let info = match node.graph_info().await {
            Ok(info) => info,
            Err(e) => return args::fail(&e),
        };
        drop((node, backend));
        graph.collect().await;
        let text = |key: &str| info.get(key).and_then(Value::as_str).map(str::to_owned);
        let next = text("full-backing-filename").or_else(|| text("backing-filename"));
        let next_format = text("backing-filename-format");
        list.push(info);
        match next {
            Some(next) if chain => (name, format, image_opts) = (next, next_format, false),
            _ => return Ok(list),
        }
    }
}
