//! What a gdb says, over a socket, to a machine whose guest it stops and lets run.
#![no_main]
use libfuzzer_sys::fuzz_target;
use lockstep_event::Context;
use lockstep_qapi::schema::RunState;
use lockstep_system::{cmdline::CommandLine, startup::machine_of, vm::Vm};
use std::{cell::OnceCell, rc::Rc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// A machine with a gdb server. It lives as long as the process.
struct World {
    context: Context,
    vm: Rc<Vm>,
    socket: String,
    _folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        // A loop of 16-bit code: inc ax; push ax; pop cx; jmp.
        let mut firmware = vec![0; 1 << 16];
        firmware[..5].copy_from_slice(&[0x40, 0x50, 0x59, 0xeb, 0xfb]);
        firmware[0xfff0..0xfff5].copy_from_slice(&[0xea, 0, 0, 0, 0xf0]);
        std::fs::write(path("firmware"), firmware).unwrap();
        let socket = path("gdb");
        let words = format!(
            "-M pc -accel tcg -smp 2 -m 16 -S -nodefaults -display none -bios {} -gdb unix:{socket},server=on,wait=off",
            path("firmware")
        );
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let context = Context::new("fuzz").unwrap();
        let main = context.handle();
        let vm = context.run(async move { machine_of(&CommandLine::parse(&words)?, main).await }).unwrap();
        Self { context, vm, socket, _folder: folder }
    }
}

/// A packet's frame, so that what is found is about packets.
fn packet(data: &[u8]) -> Vec<u8> {
    let sum = data.iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
    [b"$", data, format!("#{sum:02x}").as_bytes()].concat()
}

thread_local! {
    static WORLD: OnceCell<World> = const { OnceCell::new() };
}

fuzz_target!(|data: &[u8]| {
    let Some((&how, said)) = data.split_first() else { return };
    let bytes = match how & 1 {
        0 => said.to_vec(),
        _ => said.split(|&b| b == b'\n').flat_map(packet).collect(),
    };
    WORLD.with(|world| {
        let World { context, vm, socket, .. } = world.get_or_init(World::new);
        context.run(async {
            let mut gdb = UnixStream::connect(socket).await.unwrap();
            let (mut from, mut to) = gdb.split();
            let talk = async {
                for piece in bytes.chunks(usize::from(how >> 1) * 8 + 1) {
                    if to.write_all(piece).await.is_err() {
                        break;
                    }
                }
                let _ = to.shutdown().await;
            };
            let hear = async {
                let mut buffer = [0; 4096];
                while let Ok(1..) = from.read(&mut buffer).await {}
            };
            let both = async { tokio::join!(talk, hear) };
            tokio::time::timeout(Duration::from_secs(10), both)
                .await
                .expect("the server answers, and closes behind the gdb");
            vm.stop(RunState::Paused).await;
        });
    });
});
