//! Commit and stream on real chains: what the guest reads never changes, and the images alone read the same afterwards.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::chain::{CommitArgs, LayerName, StreamArgs, block_commit, block_stream};
use super::commands::{CommonArgs, MirrorArgs, NewImageMode, drive_mirror};
use super::mirror::SyncMode;
use super::*;
use crate::testing::on_context;
use crate::*;

const SIZE: u64 = 4 << 20;

struct Chain {
    graph: Graph,
    disk: Rc<Backend>,
    dir: tempfile::TempDir,
    model: Vec<u8>,
}

impl Chain {
    /// Three layers, each with data of its own; node names are `base`, `mid`, `top`.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let graph = Graph::new();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let mut model = vec![0; SIZE as usize];
        for (i, (name, below)) in [("base", None), ("mid", Some("base")), ("top", Some("mid"))].iter().enumerate() {
            let mut options = Options::from_pairs([("size", SIZE.to_string())]);
            if let Some(below) = below {
                options.set("backing_file", path(below));
                options.set("backing_fmt", "qcow2");
            }
            crate::image::create(&graph, &path(name), "qcow2", options).await.unwrap();
            let opts = Options::from_pairs([("driver", "qcow2"), ("file.filename", &path(name))]);
            let node = graph.open(None, opts, OpenFlags::default()).await.unwrap();
            for k in 0..6u64 {
                let (offset, len) = (k * 600_000 + i as u64 * 130_000, 200_000usize);
                node.write(offset, &vec![i as u8 + 1; len], WriteFlags::empty()).await.unwrap();
                model[offset as usize..offset as usize + len].fill(i as u8 + 1);
            }
            drop(node);
            graph.collect().await;
        }
        let pairs = [
            ("driver", "qcow2".to_owned()),
            ("node-name", "top".to_owned()),
            ("file.filename", path("top")),
            ("backing.driver", "qcow2".to_owned()),
            ("backing.node-name", "mid".to_owned()),
            ("backing.file.filename", path("mid")),
            ("backing.backing.driver", "qcow2".to_owned()),
            ("backing.backing.node-name", "base".to_owned()),
            ("backing.backing.file.filename", path("base")),
        ];
        let node = graph.open(None, Options::from_pairs(pairs), OpenFlags::default()).await.unwrap();
        let disk = Backend::new(&graph, Some("disk0")).unwrap();
        // As a guest's device does.
        disk.set_perms(Perm::CONSISTENT_READ | Perm::WRITE, Perm::CONSISTENT_READ | Perm::WRITE_UNCHANGED).unwrap();
        disk.insert(&node).unwrap();
        Self { graph, disk, dir, model }
    }

    async fn write(&mut self, offset: u64, byte: u8) {
        self.disk.write(offset, &[byte; 10_000], WriteFlags::empty()).await.unwrap();
        self.model[offset as usize..offset as usize + 10_000].fill(byte);
    }

    async fn check(&self) {
        let mut buf = vec![0; SIZE as usize];
        self.disk.read(0, &mut buf).await.unwrap();
        assert!(buf == self.model);
    }

    /// Closes everything; reads the image of that name by itself.
    async fn check_image(self, name: &str) {
        self.disk.flush().await.unwrap();
        let Self { graph, disk, dir, model } = self;
        disk.remove_medium();
        graph.close_all().await;
        let node = open_image(&Graph::new(), &dir.path().join(name)).await;
        let mut buf = vec![0; SIZE as usize];
        node.read(0, &mut buf).await.unwrap();
        assert!(buf == model);
    }

    async fn done(&self, ready: bool) {
        let jobs = Jobs::of(&self.graph);
        let job = jobs.job("j").unwrap();
        tokio::time::timeout(Duration::from_secs(20), async {
            while ready && !job.is_ready() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            if ready {
                jobs.job_complete("j").unwrap();
            }
            job.finished().await;
        })
        .await
        .unwrap();
        assert_eq!(job.error(), None);
        drop(job);
        while jobs.job("j").is_ok() {
            tokio::task::yield_now().await;
        }
    }

    fn layers(&self) -> Vec<String> {
        let mut out = Vec::new();
        let mut node = self.disk.node();
        while let Some(n) = node {
            out.push(n.name().to_owned());
            node = n.backing();
        }
        out
    }
}

async fn open_image(graph: &Graph, path: &Path) -> Rc<Node> {
    let opts = Options::from_pairs([("driver", "qcow2"), ("file.filename", path.to_str().unwrap())]);
    graph.open(None, opts, OpenFlags::default()).await.unwrap()
}

fn common() -> CommonArgs {
    CommonArgs { job_id: Some("j".into()), ..CommonArgs::default() }
}

fn node(name: &str) -> LayerName {
    LayerName::Node(name.to_owned())
}

fn commit(top: Option<&str>, base: Option<&str>) -> CommitArgs {
    CommitArgs {
        common: common(),
        device: "disk0".into(),
        top: top.map(node),
        base: base.map(node),
        backing_file: None,
        on_error: OnError::Report,
    }
}

#[test]
fn committing_the_active_layer_while_the_guest_writes_leaves_the_base_alone_with_everything() {
    on_context(async {
        let mut chain = Chain::new().await;
        block_commit(&chain.graph, commit(None, None)).await.unwrap();
        chain.write(100_000, 9).await;
        chain.write(2_000_000, 8).await;
        chain.check().await;
        chain.done(true).await;
        assert_eq!(chain.layers(), ["base"]);
        chain.write(3_000_000, 7).await;
        chain.check().await;
        chain.check_image("base").await;
    });
}

#[test]
fn committing_a_layer_in_the_middle_takes_it_out_of_the_chain() {
    on_context(async {
        let mut chain = Chain::new().await;
        block_commit(&chain.graph, commit(Some("mid"), Some("base"))).await.unwrap();
        chain.write(100_000, 9).await;
        chain.done(false).await;
        assert_eq!(chain.layers(), ["top", "base"]);
        assert!(chain.graph.find_node("base").unwrap().is_read_only());
        chain.check().await;
        chain.check_image("top").await;
    });
}

#[test]
fn streaming_pulls_everything_above_the_base_into_the_top() {
    for base in [None, Some("base")] {
        on_context(async {
            let mut chain = Chain::new().await;
            let args = StreamArgs {
                common: common(),
                device: "disk0".into(),
                base: base.map(node),
                backing_file: None,
                on_error: OnError::Report,
            };
            block_stream(&chain.graph, args).await.unwrap();
            chain.write(100_000, 9).await;
            chain.write(1_900_000, 8).await;
            chain.done(false).await;
            let layers: Vec<_> = ["top"].into_iter().chain(base).collect();
            assert_eq!(chain.layers(), layers);
            chain.check().await;
            chain.check_image("top").await;
        });
    }
}

#[test]
fn a_mirror_of_the_top_layer_stands_on_the_same_backing_file() {
    on_context(async {
        let mut chain = Chain::new().await;
        let copy = chain.dir.path().join("copy");
        let mut args = MirrorArgs::new("disk0", SyncMode::Top);
        args.common = common();
        let target = copy.to_str().unwrap();
        drive_mirror(&chain.graph, args, target, Some("qcow2"), NewImageMode::AbsolutePaths, Some("copy"))
            .await
            .unwrap();
        chain.write(100_000, 9).await;
        chain.done(true).await;
        assert_eq!(chain.layers(), ["copy", "mid", "base"]);
        chain.write(2_500_000, 8).await;
        chain.check().await;
        chain.check_image("copy").await;
    });
}

#[test]
fn layers_that_do_not_fit_are_refused() {
    on_context(async {
        let chain = Chain::new().await;
        let text = |r: lockstep_util::Result<()>| r.unwrap_err().message().to_owned();
        assert_eq!(
            text(block_commit(&chain.graph, commit(Some("mid"), Some("mid"))).await),
            "cannot commit an image into itself"
        );
        assert_eq!(
            text(block_commit(&chain.graph, commit(Some("base"), Some("mid"))).await),
            "'mid' is not a backing file of 'base'"
        );
        let mut args = commit(None, None);
        args.device = "nope".into();
        assert_eq!(text(block_commit(&chain.graph, args).await), "Device 'nope' not found");
    });
}
