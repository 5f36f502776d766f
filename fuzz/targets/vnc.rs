//! What a VNC viewer sends: its handshake (with and without a password) and its messages.
#![no_main]
use libfuzzer_sys::fuzz_target;
use lockstep_vnc::{Event, Input, Machine, Picture, serve_one};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A screen that another picture comes to with each look.
struct Screen {
    absolute: bool,
    turned: AtomicBool,
}

impl Machine for Screen {
    fn screen(&self) -> Option<Picture> {
        let turned = self.turned.fetch_xor(true, Ordering::Relaxed);
        let (width, height) = if turned { (70, 33) } else { (33, 70) };
        let rgb = (0..width * height).map(|i| [i as u8, (i / 7) as u8, turned.into()]).flatten().collect();
        Some(Picture { width, height, rgb })
    }
    fn input(&self, events: Vec<Input>) {
        for event in events {
            match event {
                Input::At(at) => assert!(at.iter().all(|v| (0..=0x7fff).contains(v))),
                Input::Button(bit, _) => assert!(bit < 8),
                Input::Moved(_) | Input::Key(..) => {}
            }
        }
    }
    fn pointer_is_absolute(&self) -> bool {
        self.absolute
    }
    fn event(&self, _: Event) {}
}

fuzz_target!(|data: &[u8]| {
    let Some((&how, said)) = data.split_first() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (viewer, stream) = tokio::io::duplex(256);
        let screen = Arc::new(Screen { absolute: how & 1 != 0, turned: AtomicBool::new(false) });
        let password = (how & 2 != 0).then(|| "secret".to_owned());
        let served = tokio::task::spawn_local(serve_one(stream, password, screen));
        let (mut from, mut to) = tokio::io::split(viewer);
        let hearing = tokio::task::spawn_local(async move {
            let mut heard = 0;
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut buffer).await {
                heard += n;
            }
            heard
        });
        if how & 4 == 0 {
            // Through the door, without a password.
            let _ = to.write_all(b"RFB 003.008\n\x01\x01").await;
        }
        for piece in said.chunks(usize::from(how >> 3) + 1) {
            if to.write_all(piece).await.is_err() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(40)).await;
        }
        let _ = to.shutdown().await;
        let _ = served.await.unwrap();
        hearing.await.unwrap();
    });
});
