//! The documented procedure, read from `docs/colo.md` so that the document cannot rot.
use std::path::Path;

/// The file-named code blocks of the user's guide.
pub struct Procedure {
    guide: String,
}

impl Default for Procedure {
    fn default() -> Self {
        Self::read()
    }
}

impl Procedure {
    /// Reads the guide.
    ///
    /// # Panics
    /// If the project's own document is not there.
    pub fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/colo.md");
        let guide = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { guide }
    }

    /// The text of the block marked with `file`, byte for byte.
    ///
    /// # Panics
    /// If the guide has no such block.
    pub fn block(&self, file: &str) -> &str {
        let kind = file.rsplit('.').next().unwrap_or_default();
        let start = format!("```{kind} {file}\n");
        let at = self.guide.find(&start).unwrap_or_else(|| panic!("docs/colo.md lacks the block {file}"));
        let rest = &self.guide[at + start.len()..];
        let end = rest.find("```").unwrap_or_else(|| panic!("docs/colo.md does not close the block {file}"));
        &rest[..end]
    }

    /// Names of all blocks, in the order of the guide.
    pub fn files(&self) -> Vec<&str> {
        self.guide.lines().filter_map(|line| line.strip_prefix("```")?.split_once(' ').map(|(_, file)| file)).collect()
    }
}

/// Where a host is reached by the other one, and the folder of its images: what a person changes in the lines on other hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// IPv4 address of the host.
    pub address: String,
    /// Folder with the host's images.
    pub folder: String,
}

impl Place {
    /// The primary's host in the document.
    pub fn first() -> Self {
        Self { address: "127.0.0.1".into(), folder: "/mnt/vms/colo-test-primary".into() }
    }

    /// The secondary's host in the document.
    pub fn second() -> Self {
        Self { address: "127.0.0.2".into(), folder: "/mnt/vms/colo-test-secondary".into() }
    }
}

/// Replaces the peer's address in a step's lines. Addresses of a host's own loopback chardevs stay.
pub fn with_peer(text: &str, peer: &str) -> String {
    let mut text = text.to_string();
    for documented in ["127.0.0.1", "127.0.0.2"] {
        for (before, after) in [("nbd://", ":9999"), ("file.host=", ",file.port=9999"), ("tcp:", ":9998")] {
            text = text.replace(&format!("{before}{documented}{after}"), &format!("{before}{peer}{after}"));
        }
    }
    text
}

/// Lines for the VM of a dead secondary's images, on the host at `place`.
pub fn restart_at(text: &str, place: &Place) -> String {
    text.replace(&Place::second().folder, &place.folder)
}

/// Step 2 for a secondary at `place` whose primary is at `primary`.
pub fn secondary_at(text: &str, place: &Place, primary: &Place) -> String {
    let text =
        text.replace(&format!("primary_ip={}", Place::first().address), &format!("primary_ip={}", primary.address));
    text.replace(&Place::second().folder, &place.folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guide_has_a_block_for_every_step() {
        let procedure = Procedure::read();
        let files = procedure.files();
        assert_eq!(files.len(), 14);
        assert_eq!(files[0], "1-primary.sh");
        assert!(files.iter().all(|file| procedure.block(file).ends_with('\n')));
        assert_eq!(procedure.block("5-checkpoint-delay.jsonl").lines().count(), 1);
    }

    #[test]
    fn the_documented_addresses_leave_the_lines_as_they_are() {
        let procedure = Procedure::read();
        let primary = procedure.block("4-primary-setup.jsonl");
        assert_eq!(with_peer(primary, "127.0.0.2"), primary);
        let secondary = procedure.block("2-secondary.sh");
        assert_eq!(secondary_at(secondary, &Place::second(), &Place::first()), secondary);
    }

    #[test]
    fn only_the_peers_address_changes_when_the_hosts_do() {
        let procedure = Procedure::read();
        let moved = with_peer(procedure.block("9-secondary-resume-b.jsonl"), "10.1.2.3");
        assert!(
            moved.contains("tcp:10.1.2.3:9998")
                && moved.contains("file.host=10.1.2.3,")
                && !moved.contains("127.0.0.1")
        );
        let local = procedure.block("7-secondary-failover.jsonl");
        assert_eq!(with_peer(local, "10.1.2.3"), local);
    }
}
