//! A set that is made once and then only asked. Who is connected keeps several for as long as the
//! connection lives, mostly empty or with a name or two: a tree would have room for eleven.

use std::borrow::Borrow;

use serde::{Deserialize, Deserializer};

/// A sorted set in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrozenSet<T>(Box<[T]>);

impl<T> FrozenSet<T> {
    /// Whether `item` is among them.
    pub fn contains<Q: Ord + ?Sized>(&self, item: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.0.binary_search_by(|one| one.borrow().cmp(item)).is_ok()
    }

    /// All of them, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T> Default for FrozenSet<T> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<T: Ord> FromIterator<T> for FrozenSet<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut items: Vec<T> = items.into_iter().collect();
        items.sort_unstable();
        items.dedup();
        Self(items.into_boxed_slice())
    }
}

impl<'s, T> IntoIterator for &'s FrozenSet<T> {
    type Item = &'s T;
    type IntoIter = std::slice::Iter<'s, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'de, T: Deserialize<'de> + Ord> Deserialize<'de> for FrozenSet<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Vec::<T>::deserialize(from)?.into_iter().collect())
    }
}

impl<T: serde::Serialize> serde::Serialize for FrozenSet<T> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_like_any_other_set(items in prop::collection::vec("[a-c]{0,2}", 0..8), asked in "[a-c]{0,2}") {
            let (frozen, tree): (FrozenSet<String>, BTreeSet<String>) =
                (items.iter().cloned().collect(), items.into_iter().collect());
            prop_assert_eq!(frozen.contains(asked.as_str()), tree.contains(asked.as_str()));
            prop_assert_eq!(frozen.is_empty(), tree.is_empty());
            prop_assert!(frozen.iter().eq(tree.iter()));
        }
    }
}
