//! A pair of VMs driven by the lines of the guide, step by step.
use crate::guest_image::GuestImage;
use crate::image::check_image;
use crate::machine::Machine;
use crate::monitor::{Mark, PROMPT};
use crate::procedure::{Procedure, secondary_at, with_peer};
use crate::stage::{Host, Stage};
pub use lockstep_migration::hooks::ColoMode as Side;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the first copy of RAM or disk, or a failover, may take.
pub const LONG: Duration = Duration::from_secs(90);

/// How a person gives a file to a monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paste {
    /// Line after line, each after the answer to the one before.
    Lines,
    /// The file in one write.
    AtOnce,
}

/// How a host is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// Its links go down, then it dies: nothing that its kernel has buffered still gets out.
    Vanishing,
    /// The VM dies, the host's kernel says so to everybody.
    Crash,
    /// The VM stands still, and comes back when the other one has taken over.
    Hang,
    /// The links go down and the VM runs on, until somebody makes sure that it does not.
    Partition,
}

impl Death {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Vanishing, Self::Crash, Self::Hang, Self::Partition];
}

/// Two VMs, or one that waits for a new partner.
pub struct Pair<'a> {
    stage: &'a Stage,
    procedure: Procedure,
    paste: Paste,
    /// The VM that serves.
    pub primary: Machine,
    /// The VM that runs alongside.
    pub secondary: Option<Machine>,
    primary_host: Host,
    secondary_host: Host,
    /// Has today's primary been a secondary?
    promoted: bool,
    /// Where the events of primary and secondary stood when the pair was joined.
    joined: [Mark; 2],
    started: usize,
    /// VMs look for failpoints.
    armed: bool,
}

impl<'a> Pair<'a> {
    /// Makes the images and starts both VMs: steps 1 to 4. Returns when both run.
    ///
    /// # Panics
    /// If a step fails.
    pub fn start(stage: &'a Stage, paste: Paste) -> Self {
        Self::start_with(stage, paste, |image| GuestImage::default().create(image))
    }

    /// [`start`](Self::start) with a disk image that `make` makes.
    ///
    /// # Panics
    /// If a step fails.
    pub fn start_with(stage: &'a Stage, paste: Paste, make: impl FnOnce(&Path) -> io::Result<()>) -> Self {
        Self::launch_with(stage, paste, false, make).set_up()
    }

    /// [`start`](Self::start) with VMs that [`arm`](Self::arm) can give failpoints to.
    ///
    /// # Panics
    /// If a step fails.
    pub fn start_armed(stage: &'a Stage, paste: Paste) -> Self {
        Self::launch_with(stage, paste, true, |image| GuestImage::default().create(image)).set_up()
    }

    /// Steps 3 and 4.
    fn set_up(self) -> Self {
        let mut pair = self;
        pair.set_up_secondary();
        pair.join("4-primary-setup.jsonl");
        pair
    }

    /// Steps 1 and 2 alone: both VMs wait.
    ///
    /// # Panics
    /// If a step fails.
    pub fn launch(stage: &'a Stage, paste: Paste) -> Self {
        Self::launch_with(stage, paste, false, |image| GuestImage::default().create(image))
    }

    fn launch_with(stage: &'a Stage, paste: Paste, armed: bool, make: impl FnOnce(&Path) -> io::Result<()>) -> Self {
        let procedure = Procedure::read();
        let [first, second] = stage.hosts.clone();
        let image = Path::new(&first.place.folder).join("primary.qcow2");
        make(&image).unwrap_or_else(|error| panic!("The guest's image: {error}"));
        std::fs::copy(&image, Path::new(&second.place.folder).join("primary.qcow2")).expect("copying an image");
        stage.mend(&first);
        let lines = with_failpoints(armed, "primary", procedure.block("1-primary.sh"));
        let primary = Machine::start(&first, "primary", &lines);
        let mut pair = Self {
            stage,
            procedure,
            paste,
            primary,
            secondary: None,
            primary_host: first,
            secondary_host: second,
            promoted: false,
            joined: [Mark::START; 2],
            started: 0,
            armed,
        };
        pair.start_secondary();
        for machine in [&pair.primary, pair.secondary()] {
            machine.monitor.greeting(LONG).unwrap_or_else(|failure| panic!("{}: {failure}", machine.name()));
        }
        pair
    }

    /// The VM of a side.
    ///
    /// # Panics
    /// If there is none.
    pub fn side(&mut self, side: Side) -> &mut Machine {
        match side {
            Side::Primary => &mut self.primary,
            Side::Secondary => self.secondary.as_mut().expect("a secondary"),
        }
    }

    /// Sets a VM's failpoints, in the form of `LOCKSTEP_FAILPOINTS`; those that it had are gone.
    ///
    /// # Panics
    /// If the pair was not started by [`start_armed`](Self::start_armed).
    pub fn arm(&mut self, side: Side, text: &str) {
        assert!(self.armed, "its VMs do not look for failpoints");
        let (file, next) = (failpoints(self.side(side).name()), "/mnt/vms/next.failpoints");
        std::fs::write(next, text).and_then(|()| std::fs::rename(next, &file)).expect("the file of failpoints");
    }

    /// The secondary.
    ///
    /// # Panics
    /// If there is none.
    pub fn secondary(&self) -> &Machine {
        self.secondary.as_ref().expect("a secondary")
    }

    /// Where the VM of a side runs, or ran.
    pub fn host(&self, side: Side) -> &Host {
        match side {
            Side::Primary => &self.primary_host,
            Side::Secondary => &self.secondary_host,
        }
    }

    /// Where the VM that serves runs.
    pub fn primary_host(&self) -> &Host {
        &self.primary_host
    }

    /// Where the other one runs, or ran.
    pub fn secondary_host(&self) -> &Host {
        &self.secondary_host
    }

    /// Step 5: another checkpoint period, at once.
    ///
    /// # Panics
    /// If it fails.
    pub fn set_checkpoint_delay(&mut self) {
        self.give_primary("5-checkpoint-delay.jsonl");
    }

    /// Another time between checkpoints, with one at once.
    ///
    /// # Panics
    /// If it fails.
    pub fn set_checkpoint_period(&mut self, period: Duration) {
        let arguments = serde_json::json!({ "x-checkpoint-delay": period.as_millis() as u64 });
        let request = serde_json::json!({ "execute": "migrate-set-parameters", "arguments": arguments });
        self.primary.monitor.command(&request.to_string());
    }

    /// Whether the secondary's guest runs alongside: `auto`, `lockstep` or `buffered`. Returns when a checkpoint has told it so.
    ///
    /// # Panics
    /// If that fails.
    pub fn set_checkpoint_style(&mut self, style: &str) {
        let arguments = serde_json::json!({ "x-checkpoint-style": style });
        let request = serde_json::json!({ "execute": "migrate-set-parameters", "arguments": arguments });
        self.primary.monitor.command(&request.to_string());
        let start = std::time::Instant::now();
        while style != "auto" && self.figures()["style"] != style {
            assert!(start.elapsed() < LONG, "waited too long for {style}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The primary's figures (`COLOStatistics`).
    ///
    /// # Panics
    /// If its monitor does not answer.
    pub fn figures(&mut self) -> serde_json::Value {
        self.primary.monitor.command(r#"{"execute": "query-colo-status"}"#)["statistics"].take()
    }

    /// Waits for `count` more checkpoints on both sides.
    ///
    /// # Panics
    /// If they do not come.
    pub fn wait_for_checkpoints(&mut self, count: usize) {
        let marks = [self.primary.monitor.mark(), self.secondary().monitor.mark()];
        for (machine, mark) in [&self.primary, self.secondary()].into_iter().zip(marks) {
            let done = machine.monitor.events("RESUME", count, mark, LONG);
            done.unwrap_or_else(|failure| panic!("{}: {failure}", machine.name()));
        }
    }

    /// Kills the secondary and goes on alone: step 6.
    ///
    /// # Panics
    /// If the failover fails.
    pub fn lose_secondary(&mut self) {
        self.lose_secondary_by(Death::Vanishing).kill();
    }

    /// Loses the secondary and goes on alone. Returns the lost VM, which may not be dead.
    ///
    /// # Panics
    /// If the failover fails.
    pub fn lose_secondary_by(&mut self, death: Death) -> Machine {
        self.strike(Side::Secondary, death);
        self.leave_secondary()
    }

    /// Goes on without the secondary, whatever that does: step 6. Returns it.
    ///
    /// # Panics
    /// If the failover fails.
    pub fn leave_secondary(&mut self) -> Machine {
        let old = self.secondary.take().expect("a secondary");
        self.give_primary("6-primary-failover.jsonl");
        // It may have told already, when it lost its secondary.
        let told = self.primary.monitor.event("COLO_EXIT", self.joined[0], LONG);
        told.unwrap_or_else(|failure| panic!("primary: {failure}"));
        self.wait_until_alone();
        old
    }

    /// Kills the primary and promotes the secondary: step 7.
    ///
    /// # Panics
    /// If the failover fails.
    pub fn lose_primary(&mut self) {
        self.lose_primary_by(Death::Vanishing).kill();
    }

    /// Loses the primary and promotes the secondary. Returns the lost VM, which may not be dead.
    ///
    /// # Panics
    /// If the failover fails.
    pub fn lose_primary_by(&mut self, death: Death) -> Machine {
        self.strike(Side::Primary, death);
        self.take_over()
    }

    /// Lets a host die; nobody does anything about it yet.
    ///
    /// # Panics
    /// If there is no such side.
    pub fn strike(&mut self, victim: Side, death: Death) {
        if matches!(death, Death::Vanishing | Death::Partition) {
            self.stage.cut(self.host(victim));
        }
        let machine = self.side(victim);
        match death {
            Death::Vanishing | Death::Crash => machine.kill(),
            Death::Hang => machine.freeze(),
            Death::Partition => {}
        }
    }

    /// Promotes the secondary, whatever its primary does: step 7. Returns the old primary.
    ///
    /// # Panics
    /// If the failover fails.
    pub fn take_over(&mut self) -> Machine {
        let survivor = self.secondary.take().expect("a secondary");
        let old = std::mem::replace(&mut self.primary, survivor);
        std::mem::swap(&mut self.primary_host, &mut self.secondary_host);
        self.promoted = true;
        self.give_primary("7-secondary-failover.jsonl");
        let told = self.primary.monitor.event("COLO_EXIT", self.joined[1], LONG);
        told.unwrap_or_else(|failure| panic!("survivor: {failure}"));
        self.wait_until_alone();
        old
    }

    /// Starts a new secondary in the dead one's place and replicates to it: step 8, or 9 if today's primary was a secondary once.
    ///
    /// # Panics
    /// If a step fails.
    pub fn resume(&mut self) {
        self.start_secondary();
        let greeting = self.secondary().monitor.greeting(LONG);
        greeting.unwrap_or_else(|failure| panic!("new secondary: {failure}"));
        self.set_up_secondary();
        let (copy, join) = if self.promoted {
            ("9-secondary-resume-a.jsonl", "9-secondary-resume-b.jsonl")
        } else {
            ("8-primary-resume-a.jsonl", "8-primary-resume-b.jsonl")
        };
        let mark = self.primary.monitor.mark();
        self.give_primary(copy);
        self.primary
            .monitor
            .event("BLOCK_JOB_READY", mark, LONG)
            .unwrap_or_else(|failure| panic!("primary: {failure}"));
        self.join(join);
    }

    /// Nobody is left: kills both VMs and takes their hosts off the network. Returns the hosts of the primary and of the secondary, with
    /// what is on their disks.
    pub fn lose_both(mut self) -> [Host; 2] {
        for (host, machine) in
            [(&self.primary_host, Some(&mut self.primary)), (&self.secondary_host, self.secondary.as_mut())]
        {
            self.stage.cut(host);
            if let Some(machine) = machine {
                machine.kill();
            }
        }
        [self.primary_host, self.secondary_host]
    }

    /// Kills both VMs and lets `qemu-img check` look at what they leave behind.
    ///
    /// # Panics
    /// If an image has errors.
    pub fn end(mut self) {
        self.secondary = None;
        self.primary.kill();
        for host in [&self.primary_host, &self.secondary_host] {
            check_image(&Path::new(&host.place.folder).join("primary.qcow2"));
        }
    }

    fn start_secondary(&mut self) {
        self.started += 1;
        self.stage.mend(&self.secondary_host);
        let (place, primary) = (&self.secondary_host.place, &self.primary_host.place);
        let lines = secondary_at(self.procedure.block("2-secondary.sh"), place, primary);
        let name = format!("secondary{}", self.started);
        self.secondary = Some(Machine::start(&self.secondary_host, &name, &with_failpoints(self.armed, &name, &lines)));
    }

    fn set_up_secondary(&mut self) {
        let text = self.procedure.block("3-secondary-setup.jsonl").to_string();
        let paste = self.paste;
        give(self.secondary.as_mut().expect("a secondary"), &text, paste);
    }

    /// Gives the primary the file that ends in `migrate`, and waits until both VMs run.
    fn join(&mut self, file: &str) {
        let marks = [self.primary.monitor.mark(), self.secondary().monitor.mark()];
        self.joined = marks;
        self.give_primary(file);
        for (machine, mark) in [&self.primary, self.secondary()].into_iter().zip(marks) {
            let running = machine.monitor.event("RESUME", mark, LONG);
            running.unwrap_or_else(|failure| panic!("{}: {failure}", machine.name()));
        }
        self.expect_colo_mode("primary");
    }

    fn give_primary(&mut self, file: &str) {
        let text = with_peer(self.procedure.block(file), &self.secondary_host.place.address);
        let paste = self.paste;
        give(&mut self.primary, &text, paste);
    }

    fn expect_colo_mode(&mut self, mode: &str) {
        let status = self.primary.monitor.command(r#"{"execute": "query-colo-status"}"#);
        assert_eq!(status["mode"], mode, "{status}");
    }

    /// After the failover's answer the VM still has to start: it runs when `query-status` says so.
    fn wait_until_alone(&mut self) {
        let start = std::time::Instant::now();
        loop {
            let status = self.primary.monitor.command(r#"{"execute": "query-status"}"#);
            let colo = self.primary.monitor.command(r#"{"execute": "query-colo-status"}"#);
            if status["running"] == true && colo["mode"] == "none" {
                return;
            }
            assert!(start.elapsed() < PROMPT, "the survivor does not run: {status} {colo}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The file in which a VM of this name looks for its failpoints.
fn failpoints(name: &str) -> PathBuf {
    PathBuf::from(format!("/mnt/vms/{name}.failpoints"))
}

/// Lines that start a VM which looks for failpoints. It has none: those of an earlier VM of this name are gone.
fn with_failpoints(armed: bool, name: &str, lines: &str) -> String {
    if !armed {
        return lines.into();
    }
    let file = failpoints(name);
    let _ = std::fs::remove_file(&file);
    format!("export LOCKSTEP_FAILPOINTS='@{}'\n{lines}", file.display())
}

fn give(machine: &mut Machine, text: &str, paste: Paste) {
    match paste {
        Paste::Lines => machine.monitor.lines(text, LONG),
        Paste::AtOnce => machine.monitor.all_at_once(text, LONG),
    }
}
