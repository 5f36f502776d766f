//! `nbd`: a node whose data is on an NBD server.
//!
//! Nothing here waits without a bound while a user waits for a command, and a request that waits for a frozen server
//! can be ended from any thread ([`YankHandle`]) or by removing the node's user.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use lockstep_util::{Error, Result, YankGuard, YankInstance, YankRegistry, bail};
use tokio::sync::Notify;

use super::address::{self, Address, DEFAULT_PORT};
use super::connection::{Connection, is_lost, negotiate};
use super::stream::YankHandle;
use super::wire::{self, Command, CommandFlags, Request, TransmissionFlags};
use crate::driver::{BlockDriver, DriverDef, DriverKind, Extent, Limits, LocalBoxFuture, Status, WriteFlags, errno};
use crate::node::Node;
use crate::open::OpenContext;
use crate::options::Options;

/// Time for making the connection, and again for the negotiation.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses between attempts to connect again.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(16);
/// Longest request without payload, in bytes.
const MAX_LONG: u64 = 1 << 30;

/// The driver's row.
pub static NBD: DriverDef = DriverDef {
    name: "nbd",
    kind: DriverKind::Protocol,
    protocols: &["nbd", "nbd+tcp", "nbd+unix"],
    needs_filename: false,
    supports_backing: false,
    probe: None,
    parse_filename: Some(parse_filename),
    strong_options: &["path", "host", "port", "export", "tls-creds", "tls-hostname", "server"],
    open: |cx| Box::pin(open(cx)),
};

fn parse_filename(name: &str, options: &mut Options) -> Result<()> {
    if ["host", "port", "path"].iter().any(|key| options.contains(key)) {
        bail!("host/port/path and file names may not be specified at the same time");
    }
    let location = address::parse_filename(name)?;
    match location.address {
        Some(Address::Inet { host, port }) => {
            options.set("host", host);
            options.set("port", port);
        }
        Some(Address::Unix(path)) => options.set("path", path.to_string_lossy().into_owned()),
        None => {}
    }
    if let Some(export) = location.export {
        options.set("export", export);
    }
    Ok(())
}

/// Takes the server's address out of the options.
fn take_address(options: &mut Options) -> Result<Address> {
    let (path, host, port) = (options.take_str("path")?, options.take_str("host")?, options.take_str("port")?);
    let mut server = options.take_group("server");
    if !server.is_empty() {
        if path.is_some() || host.is_some() || port.is_some() {
            bail!("Cannot use 'server' and path/host/port at the same time");
        }
        let mut need =
            |key: &str| server.take_str(key)?.ok_or_else(|| Error::new(format!("Parameter '{key}' is missing")));
        let address = match need("type")?.as_str() {
            "inet" => Address::Inet { host: need("host")?, port: need("port")? },
            "unix" => Address::Unix(need("path")?.into()),
            other => bail!("Parameter 'type' does not accept value '{other}'"),
        };
        if let Some(key) = server.keys().next() {
            bail!("Parameter 'server.{key}' is unexpected");
        }
        return Ok(address);
    }
    match (path, host) {
        (Some(_), Some(_)) => bail!("path and host may not be used at the same time"),
        (Some(_), None) if port.is_some() => bail!("port may not be used without host"),
        (Some(path), None) => Ok(Address::Unix(path.into())),
        (None, Some(host)) => Ok(Address::Inet { host, port: port.unwrap_or_else(|| DEFAULT_PORT.to_owned()) }),
        (None, None) => bail!("NBD server address missing"),
    }
}

enum Link {
    Up(Rc<Connection>),
    /// Lost at that time; requests wait for a new one until then plus `reconnect-delay`.
    Down(Instant),
    /// Closed, yanked, or given up.
    Gone,
}

struct Shared {
    address: Address,
    export: String,
    reconnect_delay: Duration,
    size: u64,
    flags: TransmissionFlags,
    link: RefCell<Link>,
    reconnecting: Cell<bool>,
    changed: Notify,
    yank: YankHandle,
}

struct Nbd {
    shared: Rc<Shared>,
    min_block: u32,
    max_block: u32,
    _instance: YankGuard,
}

async fn open(cx: &mut OpenContext) -> Result<Box<dyn BlockDriver>> {
    let address = take_address(&mut cx.options)?;
    let export = cx.options.take_str("export")?.unwrap_or_default();
    if export.len() > wire::MAX_STRING {
        bail!("export name too long to send to server");
    }
    if let Some(id) = cx.options.take_str("tls-creds")? {
        bail!("No TLS credentials with id '{id}'");
    }
    let reconnect_delay = Duration::from_secs(cx.options.take_u64("reconnect-delay")?.unwrap_or(0));
    let open_timeout = Duration::from_secs(cx.options.take_u64("open-timeout")?.unwrap_or(0));
    let yank = YankHandle::default();
    let registry: Rc<YankRegistry> = cx.graph.extension();
    let handle = yank.clone();
    let instance = YankInstance::BlockNode(cx.node.name().to_owned());
    let instance = registry.register_with(instance, move || handle.yank());
    let started = Instant::now();
    let mut pause = FIRST_RETRY;
    let connection = loop {
        match connect(&address, &export, &yank).await {
            Ok(connection) => break connection,
            Err(e) if started.elapsed() + pause > open_timeout => return Err(e),
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_secs(1));
    };
    let negotiated = connection.negotiated.clone();
    if negotiated.flags.contains(TransmissionFlags::READ_ONLY) && !cx.node.flags().read_only {
        let mut flags = cx.node.flags();
        if !flags.auto_read_only {
            connection.close().await;
            bail!("request on write denied without write permission");
        }
        flags.read_only = true;
        cx.node.set_flags(flags);
    }
    let shared = Rc::new(Shared {
        address,
        export,
        reconnect_delay,
        size: negotiated.size,
        flags: negotiated.flags,
        link: RefCell::new(Link::Up(connection)),
        reconnecting: Cell::new(false),
        changed: Notify::new(),
        yank,
    });
    Ok(Box::new(Nbd { shared, min_block: negotiated.min_block, max_block: negotiated.max_block, _instance: instance }))
}

/// Connects and negotiates, each within its bound; a yank ends it.
async fn connect(address: &Address, export: &str, yank: &YankHandle) -> Result<Rc<Connection>> {
    let attempt = async {
        let stream = address.connect(CONNECT_TIMEOUT).await?;
        yank.set(Some(&stream));
        let negotiated = match tokio::time::timeout(CONNECT_TIMEOUT, negotiate(&stream, export)).await {
            Ok(result) => result?,
            Err(_) => bail!("Failed to read data: Connection timed out"),
        };
        Ok(Connection::start(stream, negotiated))
    };
    let result = tokio::select! {
        result = attempt => result,
        () = yank.yanked() => Err(Error::new(format!("Failed to connect to '{address}': Operation canceled"))),
    };
    if result.is_err() {
        yank.set(None);
    }
    result
}

impl Shared {
    /// The connection, or `EIO`. Waits for a new one as long as `reconnect-delay` says.
    async fn connection(self: &Rc<Self>) -> io::Result<Rc<Connection>> {
        loop {
            let changed = self.changed.notified();
            let down_since = {
                let mut link = self.link.borrow_mut();
                if self.yank.is_yanked() {
                    *link = Link::Gone;
                }
                match &*link {
                    Link::Up(connection) if !connection.is_dead() => return Ok(connection.clone()),
                    Link::Up(_) => {
                        let now = Instant::now();
                        *link = Link::Down(now);
                        now
                    }
                    Link::Down(since) => *since,
                    Link::Gone => return Err(errno(libc::EIO)),
                }
            };
            self.reconnect();
            let left = self.reconnect_delay.saturating_sub(down_since.elapsed());
            if left.is_zero() || tokio::time::timeout(left, changed).await.is_err() {
                return Err(errno(libc::EIO));
            }
        }
    }

    /// Starts to connect again in the background, if nobody does yet and the user asked for it.
    fn reconnect(self: &Rc<Self>) {
        if self.reconnect_delay.is_zero() || self.reconnecting.replace(true) {
            return;
        }
        let weak = Rc::downgrade(self);
        tokio::task::spawn_local(async move {
            reconnect_loop(&weak).await;
            if let Some(shared) = weak.upgrade() {
                shared.reconnecting.set(false);
            }
        });
    }

    async fn request(self: &Rc<Self>, request: Request, payload: &[u8]) -> io::Result<super::connection::Answer> {
        loop {
            let connection = self.connection().await?;
            match connection.request(request, payload).await {
                Err(e) if is_lost(&e) => {
                    // With reconnect-delay the request is sent again; else the next round says EIO.
                    if self.reconnect_delay.is_zero() {
                        return Err(errno(libc::EIO));
                    }
                }
                other => return other,
            }
        }
    }
}

async fn reconnect_loop(weak: &Weak<Shared>) {
    let mut pause = FIRST_RETRY;
    loop {
        let Some(shared) = weak.upgrade() else { return };
        if !matches!(&*shared.link.borrow(), Link::Down(_)) || shared.yank.is_yanked() {
            return;
        }
        let attempt = connect(&shared.address, &shared.export, &shared.yank).await;
        if let Ok(connection) = attempt {
            let same = connection.negotiated.size == shared.size && connection.negotiated.flags == shared.flags;
            let waited_for = matches!(&*shared.link.borrow(), Link::Down(_));
            if same && waited_for {
                *shared.link.borrow_mut() = Link::Up(connection);
                shared.changed.notify_waiters();
                return;
            }
            connection.close().await;
        }
        drop(shared);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_RETRY);
    }
}

impl Nbd {
    async fn simple(
        &self,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        len: u64,
        payload: &[u8],
    ) -> io::Result<()> {
        let len = u32::try_from(len).map_err(|_| errno(libc::EINVAL))?;
        let request = Request { flags, command, cookie: 0, offset, len };
        self.shared.request(request, payload).await.map(|_| ())
    }

    fn can(&self, flag: TransmissionFlags) -> bool {
        self.shared.flags.contains(flag)
    }

    fn fua(&self, flags: WriteFlags) -> CommandFlags {
        if flags.contains(WriteFlags::FUA) && self.can(TransmissionFlags::SEND_FUA) {
            CommandFlags::FUA
        } else {
            CommandFlags::empty()
        }
    }
}

impl BlockDriver for Nbd {
    fn format_name(&self) -> &'static str {
        "nbd"
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.shared.size)
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let request = Request {
                flags: CommandFlags::empty(),
                command: Command::Read,
                cookie: 0,
                offset,
                len: u32::try_from(buf.len()).map_err(|_| errno(libc::EINVAL))?,
            };
            let answer = self.shared.request(request, &[]).await?;
            if answer.data.len() != buf.len() {
                return Err(errno(libc::EIO));
            }
            buf.copy_from_slice(&answer.data);
            Ok(())
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(self.simple(Command::Write, self.fua(flags), offset, data.len() as u64, data))
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let fast = flags.contains(WriteFlags::NO_FALLBACK);
            if !self.can(TransmissionFlags::SEND_WRITE_ZEROES) || (fast && !self.can(TransmissionFlags::SEND_FAST_ZERO))
            {
                return Err(errno(libc::ENOTSUP));
            }
            let mut command_flags = self.fua(flags);
            command_flags.set(CommandFlags::NO_HOLE, !flags.contains(WriteFlags::MAY_UNMAP));
            command_flags.set(CommandFlags::FAST_ZERO, fast);
            self.simple(Command::WriteZeroes, command_flags, offset, len, &[]).await
        })
    }

    fn discard<'a>(&'a self, offset: u64, len: u64) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            if !self.can(TransmissionFlags::SEND_TRIM) {
                return Err(errno(libc::ENOTSUP));
            }
            self.simple(Command::Trim, CommandFlags::empty(), offset, len, &[]).await
        })
    }

    fn flush(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async {
            if !self.can(TransmissionFlags::SEND_FLUSH) {
                return Ok(());
            }
            self.simple(Command::Flush, CommandFlags::empty(), 0, 0, &[]).await
        })
    }

    fn supports_fua(&self) -> bool {
        self.can(TransmissionFlags::SEND_FUA)
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64, _want_zero: bool) -> LocalBoxFuture<'a, io::Result<Extent>> {
        Box::pin(async move {
            let data = Status::DATA | Status::ALLOCATED;
            let has_context = match &*self.shared.link.borrow() {
                Link::Up(connection) => connection.negotiated.allocation_context.is_some(),
                _ => false,
            };
            if !has_context {
                return Ok(Extent::new(data, len));
            }
            let asked = len.min(MAX_LONG);
            let request = Request {
                flags: CommandFlags::REQ_ONE,
                command: Command::BlockStatus,
                cookie: 0,
                offset,
                len: asked as u32,
            };
            let answer = self.shared.request(request, &[]).await?;
            let Some((n, state)) = answer.extents.first().copied() else { return Err(errno(libc::EIO)) };
            let n = u64::from(n).min(asked);
            if n == 0 {
                return Err(errno(libc::EIO));
            }
            let zero = state & wire::STATE_ZERO != 0;
            let mut status = Status::ALLOCATED;
            status.set(Status::ZERO, zero);
            // A hole with unknown contents has to be read like data.
            status.set(Status::DATA, state & wire::STATE_HOLE == 0 || !zero);
            Ok(Extent::new(status, n))
        })
    }

    fn close(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(async {
            let link = self.shared.link.replace(Link::Gone);
            if let Link::Up(connection) = link {
                if connection.is_busy() {
                    connection.kill();
                } else {
                    connection.close().await;
                }
            }
            self.shared.yank.set(None);
            self.shared.changed.notify_waiters();
        })
    }

    fn cancel_in_flight(&self) {
        let busy = match &*self.shared.link.borrow() {
            Link::Up(connection) => connection.is_busy(),
            Link::Down(_) => true,
            Link::Gone => false,
        };
        if busy {
            if let Link::Up(connection) = self.shared.link.replace(Link::Gone) {
                connection.kill();
            }
            self.shared.changed.notify_waiters();
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: self.min_block,
            max_transfer: u64::from(self.max_block),
            max_zeroes: MAX_LONG,
            ..Limits::default()
        }
    }

    fn plain_filename(&self, _node: &Node) -> Option<String> {
        Some(self.shared.address.uri(&self.shared.export))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        if let Link::Up(connection) = self.shared.link.replace(Link::Gone) {
            connection.kill();
        }
    }
}
