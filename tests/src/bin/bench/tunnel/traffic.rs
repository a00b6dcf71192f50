//! Traffic through a path, and what it costs.

use std::io::{IoSlice, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, sendmmsg};

use crate::cpu;
use crate::pin::Pinned;

use super::path::{CLIENT, FAR, NEAR, Path, SERVER};

/// What bulk TCP gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bulk {
    /// Megabits of payload a second, as the far end received them.
    pub(super) megabits: f64,
    /// CPU seconds of all that took part for a gigabyte (10⁹ bytes) of payload.
    pub(super) cpu: f64,
}

/// One connection from the client to the far end, that sends as fast as it can for `time`.
pub(super) fn bulk(path: &Path, time: Duration) -> Result<Bulk> {
    let listener = path.peer.listen(SocketAddr::V4(SERVER))?;
    let near = path.client.connect(SocketAddr::V4(SERVER))?;
    let (far, _) = listener.accept().context("cannot accept")?;
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(STUCK))?;
        stream.set_write_timeout(Some(STUCK))?;
    }
    let received = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let (received, stop) = (&received, &stop);
    thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let _pinned = Pinned::to(NEAR)?;
            send_bulk(near, stop)
        });
        let receiving = scope.spawn(move || {
            let _pinned = Pinned::to(FAR)?;
            receive_bulk(far, received)
        });
        thread::sleep(WARM_UP);
        let measured = (|| {
            let before = (used(path)?, received.load(Ordering::Relaxed));
            let begin = Instant::now();
            thread::sleep(time);
            let elapsed = begin.elapsed();
            let bytes = received.load(Ordering::Relaxed) - before.1;
            Ok::<_, anyhow::Error>((bytes, elapsed, used(path)?.saturating_sub(before.0)))
        })();
        stop.store(true, Ordering::Relaxed);
        for thread in [sending, receiving] {
            let ended = thread.join().map_err(|_| anyhow::anyhow!("TCP panicked"))?;
            ended.context("bulk TCP")?;
        }
        let (bytes, elapsed, cpu) = measured?;
        ensure!(bytes > 0, "nothing came through {}", path.name);
        Ok(Bulk {
            megabits: bytes as f64 * 8e-6 / elapsed.as_secs_f64(),
            cpu: cpu.as_secs_f64() / (bytes as f64 * 1e-9),
        })
    })
}

/// What small datagrams gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Datagrams {
    /// Thousands a second, as the far end received them.
    pub(super) thousands: f64,
    /// CPU time in the sender's system call, up to the tunnel's queue, in nanoseconds for each: that of the batch in the
    /// middle, because some pay for interrupts that are none of theirs.
    pub(super) sending: f64,
    /// Share of those sent that did not arrive, in percent.
    pub(super) lost: f64,
}

/// Datagrams of 64 bytes, no more than [`WINDOW`] of them on the way.
pub(super) fn datagrams(path: &Path, time: Duration) -> Result<Datagrams> {
    let far_end = path.peer.udp(SocketAddr::V4(SERVER))?;
    far_end.set_read_timeout(Some(Duration::from_millis(20)))?;
    let sender = path.client.udp(SocketAddr::from((CLIENT, 0)))?;
    sender.connect(SERVER)?;
    let arrivals = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let counting = scope.spawn(|| {
            let _pinned = Pinned::to(FAR);
            count(&far_end, &arrivals, &stop);
        });
        // The first ones find out how to get there.
        let outcome = Pinned::to(NEAR).and_then(|_pinned| {
            send_datagrams(&sender, &arrivals, WARM_UP)?;
            send_datagrams(&sender, &arrivals, time)
        });
        stop.store(true, Ordering::Relaxed);
        counting
            .join()
            .map_err(|_| anyhow::anyhow!("receiving panicked"))?;
        let outcome = outcome?;
        ensure!(outcome.arrived > 0, "nothing came through {}", path.name);
        Ok(Datagrams {
            thousands: outcome.arrived as f64 * 1e-3 / outcome.elapsed.as_secs_f64(),
            sending: median(outcome.costs).context("no full batch was sent")?,
            lost: outcome.lost as f64 * 100.0 / outcome.sent as f64,
        })
    })
}

/// What this process and those in the namespaces have used: senders, receivers, tunnels and daemons.
fn used(path: &Path) -> Result<Duration> {
    Ok(cpu::of_this_process()? + cpu::inside(&[&path.client, &path.peer])?)
}

fn send_bulk(mut stream: TcpStream, stop: &AtomicBool) -> Result<()> {
    let block = vec![0x5a; 128 * 1024];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&block)?;
    }
    Ok(())
}

fn receive_bulk(mut stream: TcpStream, received: &AtomicU64) -> Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => received.fetch_add(length as u64, Ordering::Relaxed),
        };
    }
}

fn count(socket: &UdpSocket, received: &AtomicU64, stop: &AtomicBool) {
    let mut buffer = [0; 128];
    while !stop.load(Ordering::Relaxed) {
        // Whatever the error is, the sender sees that nothing arrives.
        if socket.recv(&mut buffer).is_ok() {
            received.fetch_add(1, Ordering::Release);
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Flow {
    sent: u64,
    arrived: u64,
    lost: u64,
    /// Nanoseconds a datagram, of each full batch.
    costs: Vec<f64>,
    elapsed: Duration,
}

fn send_datagrams(socket: &UdpSocket, received: &AtomicU64, time: Duration) -> Result<Flow> {
    let payload = [0x5a; 64];
    let slices = [[IoSlice::new(&payload)]; BATCH];
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let start = received.load(Ordering::Acquire);
    let arrived = || received.load(Ordering::Acquire) - start;
    let mut flow = Flow::default();
    let begin = Instant::now();
    let mut progress = (0, begin);
    while begin.elapsed() < time {
        let here = arrived();
        if here > progress.0 {
            progress = (here, Instant::now());
        }
        // What is lost and turns up later makes this less than it was.
        let on_the_way = flow.sent.saturating_sub(flow.lost + here);
        if on_the_way + BATCH as u64 > WINDOW {
            if progress.1.elapsed() > LOST {
                flow.lost += on_the_way;
            } else {
                thread::sleep(Duration::from_micros(20));
            }
            continue;
        }
        let before = cpu::of_this_thread()?;
        let results = sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            &slices,
            [None; BATCH],
            [],
            MsgFlags::empty(),
        );
        let count = match results {
            Ok(results) => results.count() as u64,
            Err(nix::Error::ENOBUFS | nix::Error::EINTR) => 0,
            Err(error) => return Err(error).context("cannot send datagrams"),
        };
        let spent = cpu::of_this_thread()?.saturating_sub(before);
        if count == BATCH as u64 {
            flow.costs.push(spent.as_secs_f64() * 1e9 / BATCH as f64);
        }
        flow.sent += count;
    }
    flow.elapsed = begin.elapsed();
    flow.arrived = arrived();
    // Those still on the way belong to nobody.
    let deadline = Instant::now() + LOST;
    while arrived() + flow.lost < flow.sent && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    Ok(flow)
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Datagrams on the way at once, fewer than the queue of any device on it.
const WINDOW: u64 = 256;
/// Datagrams in a system call.
const BATCH: usize = 32;
/// When nothing has arrived for so long, what is on the way is lost.
const LOST: Duration = Duration::from_millis(100);
const WARM_UP: Duration = Duration::from_millis(150);
const STUCK: Duration = Duration::from_secs(20);
