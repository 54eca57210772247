//! Who asks the same at the same time is answered together: when a thousand clients come back to one
//! place, the log is read a few times and not a thousand. An answer is never older than the question.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::rc::Rc;

use tokio::sync::oneshot;

/// Questions of one worker thread that are being answered, with those who ask while they are.
pub(super) struct Gathered<Q, A>(RefCell<HashMap<Q, Vec<oneshot::Sender<A>>>>);

impl<Q, A> Default for Gathered<Q, A> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<Q: Eq + Hash + Clone + 'static, A: Clone + 'static> Gathered<Q, A> {
    /// The answer to `question`. `find` begins to look for it after the question was asked: at once,
    /// or, if somebody asked the same before, when that is answered, then for all who wait.
    pub(super) async fn ask<F>(self: &Rc<Self>, question: Q, find: impl Fn(Q) -> F + 'static) -> Option<A>
    where
        F: Future<Output = A> + 'static,
    {
        let (tell, told) = oneshot::channel();
        let asked_before = {
            let mut open = self.0.borrow_mut();
            let asked_before = open.contains_key(&question);
            open.entry(question.clone()).or_default().push(tell);
            asked_before
        };
        if !asked_before {
            let all = self.clone();
            actix_rt::spawn(async move {
                let open = Open { all, question };
                while let Some(asking) = open.next() {
                    let answer = find(open.question.clone()).await;
                    // Who has gone meanwhile needs no answer.
                    asking.into_iter().for_each(|tell| drop(tell.send(answer.clone())));
                }
            });
        }
        told.await.ok()
    }
}

/// A question as long as somebody looks for its answer. Who still asks when it closes hears nothing.
struct Open<Q: Eq + Hash, A> {
    all: Rc<Gathered<Q, A>>,
    question: Q,
}

impl<Q: Eq + Hash, A> Open<Q, A> {
    /// Those who ask now, if there is anybody.
    fn next(&self) -> Option<Vec<oneshot::Sender<A>>> {
        let mut open = self.all.0.borrow_mut();
        open.get_mut(&self.question).map(std::mem::take).filter(|asking| !asking.is_empty())
    }
}

impl<Q: Eq + Hash, A> Drop for Open<Q, A> {
    fn drop(&mut self) {
        self.all.0.borrow_mut().remove(&self.question);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    #[actix_rt::test]
    async fn who_asks_while_an_answer_is_looked_for_gets_the_next_one_together() {
        let gathered = Rc::new(Gathered::default());
        let (looked, may_end) = (Rc::new(Cell::new(0)), Rc::new(Semaphore::new(0)));
        let ask = |question: &'static str| {
            let (gathered, looked, may_end) = (gathered.clone(), looked.clone(), may_end.clone());
            actix_rt::spawn(async move {
                let find = move |question| {
                    looked.set(looked.get() + 1);
                    let (nth, may_end) = (looked.get(), may_end.clone());
                    async move {
                        may_end.acquire().await.unwrap().forget();
                        (question, nth)
                    }
                };
                gathered.ask(question, find).await
            })
        };
        let settle = || join_all((0..8).map(|_| tokio::task::yield_now()));

        let first = ask("a");
        settle().await;
        let (later, gone) = ([ask("a"), ask("a"), ask("a")], ask("a"));
        settle().await;
        assert_eq!(looked.get(), 1, "the later ones wait");
        let other = ask("b");
        settle().await;
        assert_eq!(looked.get(), 2, "another question waits for nobody");
        gone.abort();
        may_end.add_permits(3);
        assert_eq!(first.await.unwrap(), Some(("a", 1)));
        assert_eq!(other.await.unwrap(), Some(("b", 2)));
        for answer in later {
            assert_eq!(answer.await.unwrap(), Some(("a", 3)));
        }
        settle().await;
        assert_eq!(looked.get(), 3);
        assert!(gathered.0.borrow().is_empty());
    }
}
