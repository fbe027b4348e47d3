//! Polling something only when it has been woken.
//!
//! A task that is woken polls all that it waits for, and hyper polls a body several times for each
//! piece of it. What is polled here has a waker of its own: while that has not been called, asking
//! again ends at once. What wakes itself while it is polled, as a body's two ends wake each other,
//! is polled again here, without the way round by the scheduler.
//!
//! Invariant: what was woken is polled when its task asks next, and the task is woken to ask.

use futures::task::{ArcWake, AtomicWaker, waker_ref};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

pub struct Woken(Arc<State>);

/// A future that is only polled when it has been woken.
pub struct WhenWoken<F> {
    woken: Woken,
    future: F,
}

struct State {
    flags: AtomicU8,
    /// The task that asked last.
    task: AtomicWaker,
}

/// It is to be polled.
const WOKEN: u8 = 1;
/// It is being polled: whoever polls it looks at the flags afterwards.
const POLLING: u8 = 2;
/// What goes on waking itself (hyper does to let others have a turn) gives way to other tasks after
/// so many times.
const ROUNDS_MAX: usize = 4;

/// While this lives, it is being polled; also when that panics.
struct Polling<'a>(&'a AtomicU8);

impl<'a> Polling<'a> {
    fn begin(flags: &'a AtomicU8) -> Self {
        flags.swap(POLLING, Ordering::AcqRel);
        Self(flags)
    }
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.0.fetch_and(!POLLING, Ordering::AcqRel);
    }
}

impl Default for Woken {
    fn default() -> Self {
        Self(Arc::new(State { flags: AtomicU8::new(WOKEN), task: AtomicWaker::new() }))
    }
}

impl ArcWake for State {
    fn wake_by_ref(state: &Arc<Self>) {
        if state.flags.fetch_or(WOKEN, Ordering::AcqRel) == 0 {
            state.task.wake();
        }
    }
}

impl Woken {
    /// Polls if there is a reason to. What was ready is polled at the next asking whether or not it
    /// is woken.
    pub fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut inner: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let State { flags, task } = &*self.0;
        task.register(cx.waker());
        for _ in 0..ROUNDS_MAX {
            if flags.load(Ordering::Acquire) & WOKEN == 0 {
                return Poll::Pending;
            }
            let polling = Polling::begin(flags);
            let polled = inner(&mut Context::from_waker(&waker_ref(&self.0)));
            drop(polling);
            if polled.is_ready() {
                flags.fetch_or(WOKEN, Ordering::AcqRel);
                return polled;
            }
        }
        if flags.load(Ordering::Acquire) & WOKEN != 0 {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Something about it has changed unheard: the next asking polls it. This wakes no task.
    pub fn renew(&mut self) {
        self.0.flags.fetch_or(WOKEN, Ordering::AcqRel);
    }

    /// Nobody asks for the time being: the task that did so last is let go.
    pub fn rest(&mut self) {
        self.0.task.take();
        self.renew();
    }
}

impl<F> WhenWoken<F> {
    pub fn new(future: F) -> Self {
        Self { woken: Woken::default(), future }
    }
}

impl<F: Future + Unpin> Future for WhenWoken<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { woken, future } = self.get_mut();
        woken.poll(cx, |cx| Pin::new(&mut *future).poll(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Wake, Waker};

    /// A task that counts how often it is woken.
    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Task {
        fn woken(&self) -> usize {
            self.0.swap(0, Ordering::Relaxed)
        }
    }

    /// Polls once; how often the inner one was polled, which does as `inner` says.
    fn polled(
        woken: &mut Woken,
        task: &Arc<Task>,
        mut inner: impl FnMut(&Waker) -> Poll<()>,
    ) -> (usize, Poll<()>) {
        let mut times = 0;
        let waker = Waker::from(task.clone());
        let polled = woken.poll(&mut Context::from_waker(&waker), |cx| {
            times += 1;
            inner(cx.waker())
        });
        (times, polled)
    }

    #[test]
    fn what_was_not_woken_is_not_polled() {
        let (mut woken, task) = (Woken::default(), Arc::new(Task::default()));
        let mut kept = None;
        let (times, _) = polled(&mut woken, &task, |waker| {
            kept = Some(waker.clone());
            Poll::Pending
        });
        assert_eq!(times, 1, "the first time");
        assert_eq!(polled(&mut woken, &task, |_| Poll::Pending).0, 0);
        let kept = kept.unwrap();
        kept.wake_by_ref();
        kept.wake();
        assert_eq!(task.woken(), 1, "once is enough");
        assert_eq!(polled(&mut woken, &task, |_| Poll::Pending).0, 1);
        woken.renew();
        assert_eq!(polled(&mut woken, &task, |_| Poll::Pending).0, 1);
    }

    #[test]
    fn what_was_ready_is_polled_again() {
        let (mut woken, task) = (Woken::default(), Arc::new(Task::default()));
        for _ in 0..3 {
            assert_eq!(polled(&mut woken, &task, |_| Poll::Ready(())), (1, Poll::Ready(())));
        }
        assert_eq!(task.woken(), 0);
    }

    #[test]
    fn what_wakes_itself_is_polled_again_within_bounds() {
        let (mut woken, task) = (Woken::default(), Arc::new(Task::default()));
        let mut first = true;
        let once = polled(&mut woken, &task, |waker| {
            if std::mem::take(&mut first) {
                waker.wake_by_ref();
            }
            Poll::Pending
        });
        assert_eq!((once, task.woken()), ((2, Poll::Pending), 0));
        woken.renew();
        let always = polled(&mut woken, &task, |waker| {
            waker.wake_by_ref();
            Poll::Pending
        });
        assert_eq!((always, task.woken()), ((ROUNDS_MAX, Poll::Pending), 1), "later, by the task");
        assert_eq!(polled(&mut woken, &task, |_| Poll::Pending).0, 1);
    }

    #[test]
    fn the_task_that_asked_last_is_woken() {
        let mut woken = Woken::default();
        let (first, second) = (Arc::new(Task::default()), Arc::new(Task::default()));
        let mut kept = None;
        let _ = polled(&mut woken, &first, |waker| {
            kept = Some(waker.clone());
            Poll::Pending
        });
        let _ = polled(&mut woken, &second, |_| Poll::Pending);
        kept.unwrap().wake();
        assert_eq!((first.woken(), second.woken()), (0, 1));
    }

    #[test]
    fn at_rest_no_task_is_kept() {
        let (mut woken, task) = (Woken::default(), Arc::new(Task::default()));
        let _ = polled(&mut woken, &task, |_| Poll::Pending);
        assert_eq!(Arc::strong_count(&task), 2);
        woken.rest();
        assert_eq!(Arc::strong_count(&task), 1);
        assert_eq!(polled(&mut woken, &task, |_| Poll::Pending).0, 1, "it is polled afresh");
    }

    #[test]
    fn what_panicked_can_still_be_woken() {
        let (mut woken, task) = (Woken::default(), Arc::new(Task::default()));
        let mut kept = None;
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            polled(&mut woken, &task, |waker| {
                kept = Some(waker.clone());
                panic!("on purpose")
            })
        }));
        assert!(panicked.is_err());
        kept.unwrap().wake();
        assert_eq!(task.woken(), 1);
        assert_eq!(polled(&mut woken, &task, |_| Poll::Pending).0, 1);
    }

    /// However the wakings fall, none is lost: a thread counts up and wakes, and the other waits
    /// for each number.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_waking_is_lost_between_threads() {
        const NUMBERS: usize = 20_000;
        let number = Arc::new(AtomicUsize::new(0));
        let waker = Arc::new(AtomicWaker::new());
        let (counted, woke) = (number.clone(), waker.clone());
        let counting = tokio::task::spawn_blocking(move || {
            for _ in 0..NUMBERS {
                counted.fetch_add(1, Ordering::Release);
                woke.wake();
            }
        });
        let mut seen = 0;
        let mut woken = Woken::default();
        while seen < NUMBERS {
            let next = std::future::poll_fn(|cx| {
                woken.poll(cx, |cx| {
                    waker.register(cx.waker());
                    let now = number.load(Ordering::Acquire);
                    if now > seen { Poll::Ready(now) } else { Poll::Pending }
                })
            });
            seen = tokio::time::timeout(std::time::Duration::from_secs(60), next).await.unwrap();
        }
        counting.await.unwrap();
    }
}
