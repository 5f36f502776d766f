//! Looking at disk images after the VMs have ended.
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

const PART: u64 = 1 << 20;

/// Runs `qemu-img check` on an image.
///
/// # Panics
/// If it finds errors.
pub fn check_image(path: &Path) {
    check(path, &[0]);
}

/// As [`check_image`], but there may be clusters that nobody uses: what a VM that died had begun to allocate.
///
/// # Panics
/// If it finds anything else.
pub fn check_image_but_leaks(path: &Path) {
    const LEAKS: i32 = 3;
    check(path, &[0, LEAKS]);
}

fn check(path: &Path, good: &[i32]) {
    let output = Command::new("qemu-img").arg("check").arg(path).stdin(Stdio::null()).output().expect("qemu-img");
    let text = String::from_utf8_lossy(&output.stdout);
    let is_good = output.status.code().is_some_and(|code| good.contains(&code));
    assert!(is_good, "{}: {text}{}", path.display(), String::from_utf8_lossy(&output.stderr));
}

/// Makes a qcow2 image that takes the writes, over a base that stays as it is.
///
/// # Panics
/// If `qemu-img create` fails.
pub fn make_overlay(base: &Path, path: &Path) {
    let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
    let made = Command::new("qemu-img").args(create).arg(base).arg(path).status().expect("qemu-img");
    assert!(made.success(), "qemu-img: {made}");
}

/// Do two images show a guest the same disk?
///
/// # Errors
/// If `qemu-img convert` fails.
pub fn same_contents(one: &Path, other: &Path) -> io::Result<bool> {
    let files = [raw(one)?, raw(other)?];
    let size = files[0].metadata()?.len();
    if size != files[1].metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; PART as usize], vec![0; PART as usize]);
    let mut at = 0;
    while at < size {
        // Where both are holes there is nothing to compare.
        at = next_data(&files[0], at, size).min(next_data(&files[1], at, size)) / PART * PART;
        let count = PART.min(size - at.min(size)) as usize;
        files[0].read_exact_at(&mut left[..count], at)?;
        files[1].read_exact_at(&mut right[..count], at)?;
        if left[..count] != right[..count] {
            return Ok(false);
        }
        at += PART;
    }
    Ok(true)
}

fn raw(image: &Path) -> io::Result<File> {
    let folder = image.parent().unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(folder)?;
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "qcow2", "-O", "raw"]).arg(image).arg(file.path()).stdin(Stdio::null());
    let output = convert.output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    // Opened again by its name: qemu-img may have replaced the file.
    File::open(file.path())
}

fn next_data(file: &File, from: u64, size: u64) -> u64 {
    rustix::fs::seek(file.as_fd(), rustix::fs::SeekFrom::Data(from)).unwrap_or(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_found_behind_holes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(100 << 20).unwrap();
        file.write_all_at(b"x", 50 << 20).unwrap();
        let found = next_data(&file, 0, 100 << 20);
        assert!(found <= 50 << 20);
        assert_eq!(next_data(&file, 60 << 20, 100 << 20), 100 << 20);
    }
}
