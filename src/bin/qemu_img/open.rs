//! Opening images for the commands.

use super::{FAILURE, args};
use lockstep_bin::getopt::Parsed;
use lockstep_block::{Backend, Graph, Node, OpenFlags, Options, Perm};
use lockstep_event::Context;
use lockstep_util::{Error, Result, bail};
use std::rc::Rc;

/// How an image is to be opened.
#[derive(Clone, Copy, Default)]
pub struct Request<'a> {
    /// File name, or a list of options with `image_opts`.
    pub name: &'a str,
    /// The name is `driver=qcow2,file.filename=…`.
    pub image_opts: bool,
    /// Format, guessed without one.
    pub format: Option<&'a str>,
    /// Flags.
    pub flags: OpenFlags,
    /// Every write is stable when it ends.
    pub writethrough: bool,
}

impl<'a> Request<'a> {
    /// The image `name`, by the options `-f` and `--image-opts`.
    pub fn of(parsed: &'a Parsed, name: &'a str, flags: OpenFlags) -> Self {
        Self { name, image_opts: parsed.has("image-opts"), format: parsed.value("format"), flags, writethrough: false }
    }

    /// The same with the cache mode of `-t`; says what is wrong with it and fails.
    pub fn cached(mut self, parsed: &Parsed) -> std::result::Result<Self, u8> {
        let mode = parsed.value("cache").unwrap_or("writeback");
        let Some(writethrough) = cache_mode(mode, &mut self.flags) else {
            args::report(&format!("Invalid cache option: {mode}"));
            return Err(FAILURE);
        };
        self.writethrough = writethrough;
        Ok(self)
    }
}

/// An open image and its user.
pub struct Image {
    /// Holds the node.
    pub backend: Rc<Backend>,
    /// The root node.
    pub node: Rc<Node>,
}

/// Runs a command's work on a context of its own, closing every node at the end.
pub fn run<F, Fut, T>(work: F) -> std::result::Result<T, u8>
where
    F: FnOnce(Graph) -> Fut,
    Fut: Future<Output = std::result::Result<T, u8>>,
{
    let context = match Context::new("qemu-img") {
        Ok(context) => context,
        Err(e) => return args::fail(&Error::with_errno("Failed to set up the event loop", &e)),
    };
    context.run(async {
        let graph = Graph::new();
        let result = work(graph.clone()).await;
        graph.close_all().await;
        result
    })
}

/// Opens an image, or says why not and fails.
pub async fn image(graph: &Graph, request: Request<'_>) -> std::result::Result<Image, u8> {
    match try_image(graph, request).await {
        Ok(image) => Ok(image),
        Err(e) => args::fail(&e.prepend(format!("Could not open '{}': ", request.name))),
    }
}

/// Opens an image.
pub async fn try_image(graph: &Graph, request: Request<'_>) -> Result<Image> {
    let mut options = Options::new();
    let mut filename = None;
    if request.image_opts {
        options = parse_image_opts(request.name)?;
        if request.format.is_some() {
            bail!("--image-opts and --format are mutually exclusive");
        }
    } else {
        filename = Some(request.name);
        if let Some(format) = request.format {
            options.set("driver", format);
        }
    }
    if request.flags.force_share {
        options.set("force-share", true);
    }
    let node = graph.open(filename, options, request.flags).await?;
    let backend = Backend::new(graph, None)?;
    backend.set_write_cache(!request.writethrough);
    let mut perm = if request.flags.no_io { Perm::empty() } else { Perm::CONSISTENT_READ };
    if !node.is_read_only() {
        perm |= Perm::WRITE | Perm::RESIZE;
    }
    backend.set_perms(perm, Perm::all())?;
    backend.insert(&node)?;
    Ok(Image { backend, node })
}

/// `driver=qcow2,file.filename=x,,y`: a comma is doubled to stand for itself.
pub fn parse_image_opts(text: &str) -> Result<Options> {
    let mut options = Options::new();
    for part in split_commas(text) {
        match part.split_once('=') {
            Some((key, value)) => options.set(key, value),
            // A first element without a key is the file's name.
            None if options.is_empty() => options.set("file.filename", part),
            None => options.set(part, "on"),
        }
    }
    Ok(options)
}

/// Parts between commas; doubled commas stand for one.
pub fn split_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != ',' {
            if let Some(last) = parts.last_mut() {
                last.push(c);
            }
        } else if chars.peek() == Some(&',') {
            chars.next();
            if let Some(last) = parts.last_mut() {
                last.push(',');
            }
        } else {
            parts.push(String::new());
        }
    }
    parts.retain(|p| !p.is_empty());
    parts
}

/// Applies a cache mode (`-t`, `-T`): flags, and whether writes go through.
pub fn cache_mode(mode: &str, flags: &mut OpenFlags) -> Option<bool> {
    let (direct, no_flush, writethrough) = match mode {
        "none" | "off" => (true, false, false),
        "directsync" => (true, false, true),
        "writeback" => (false, false, false),
        "unsafe" => (false, true, false),
        "writethrough" => (false, false, true),
        _ => return None,
    };
    (flags.cache_direct, flags.no_flush) = (direct, no_flush);
    Some(writethrough)
}

/// Flags for reading only.
pub fn read_only() -> OpenFlags {
    OpenFlags { read_only: true, ..OpenFlags::default() }
}
