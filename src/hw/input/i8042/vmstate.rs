//! The sections `ps2kbd`, `ps2mouse` and `pckbd`.
#![allow(missing_docs)]

use lockstep_vmstate::{Buffer, LoadError, VmState};

/// The common part of PS/2 devices. The queue is a ring of 256 bytes.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "PS2 Common State", version = 3)]
pub struct Ps2State {
    /// The command that waits for its parameter, or -1.
    pub write_cmd: i32,
    #[vmstate(name = "queue.rptr")]
    pub rptr: i32,
    #[vmstate(name = "queue.wptr")]
    pub wptr: i32,
    #[vmstate(name = "queue.count")]
    pub count: i32,
    #[vmstate(name = "queue.data")]
    pub data: Buffer<256>,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "ps2kbd", version = 3)]
pub struct KeyboardState {
    pub parent_obj: Ps2State,
    pub scan_enabled: i32,
    pub translate: i32,
    pub scancode_set: i32,
    #[vmstate(subsection)]
    pub need_high_bit: Option<HighBitState>,
    #[vmstate(subsection)]
    pub led_state: Option<LedState>,
    #[vmstate(subsection)]
    pub replies: Option<ReplyQueueState>,
}

/// Between the bytes of a translated break code: this keyboard queues codes whole.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "ps2kbd/need_high_bit", version = 1)]
pub struct HighBitState {
    pub need_high_bit: bool,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "ps2kbd/ledstate", version = 3, minimum = 2)]
pub struct LedState {
    pub ledstate: i32,
}

/// Where the replies at the head of the queue end.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "ps2kbd/command_reply_queue", version = 0)]
pub struct ReplyQueueState {
    #[vmstate(name = "parent_obj.queue.cwptr")]
    pub cwptr: i32,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "ps2mouse", version = 2)]
pub struct MouseState {
    pub parent_obj: Ps2State,
    pub mouse_status: u8,
    pub mouse_resolution: u8,
    pub mouse_sample_rate: u8,
    pub mouse_wrap: u8,
    pub mouse_type: u8,
    pub mouse_detect_state: u8,
    pub mouse_dx: i32,
    pub mouse_dy: i32,
    pub mouse_dz: i32,
    pub mouse_buttons: u8,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "pckbd", version = 3)]
pub struct ControllerState {
    pub kbd: ControllerPart,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "pckbd", version = 3)]
pub struct ControllerPart {
    pub write_cmd: u8,
    pub status: u8,
    pub mode: u8,
    pub pending_tmp: u8,
    #[vmstate(subsection)]
    pub outport: Option<OutputPortState>,
    #[vmstate(subsection)]
    pub extended: Option<ExtendedState>,
}

/// The output port, when it is not what the rest implies.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "pckbd_outport", version = 1)]
pub struct OutputPortState {
    pub outport: u8,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "pckbd/extended_state", version = 0)]
pub struct ExtendedState {
    pub migration_flags: u32,
    pub obsrc: u32,
    pub obdata: u8,
    pub cbdata: u8,
}

impl KeyboardState {
    pub(super) fn validate(&self) -> Result<(), LoadError> {
        if !(1..=3).contains(&self.scancode_set) {
            return Err(LoadError::invalid("ps2kbd: unknown scan code set"));
        }
        self.parent_obj.validate(self.replies.as_ref().map(|r| r.cwptr))
    }
}

impl MouseState {
    pub(super) fn validate(&self) -> Result<(), LoadError> {
        self.parent_obj.validate(None)
    }
}
