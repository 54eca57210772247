//! An immutable set in one allocation. Each connection keeps several for its whole life, mostly
//! empty or with one or two names: a node of a `BTreeSet` would have room for eleven.

use std::borrow::Borrow;

use serde::{Deserialize, Deserializer};

/// An immutable set, stored as a sorted slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SortedSet<T>(Box<[T]>);

impl<T> SortedSet<T> {
    /// Whether `item` is among them.
    pub fn contains<Q: Ord + ?Sized>(&self, item: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.0.binary_search_by(|one| one.borrow().cmp(item)).is_ok()
    }

    /// All items, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T> Default for SortedSet<T> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<T: Ord> FromIterator<T> for SortedSet<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut items: Vec<T> = items.into_iter().collect();
        items.sort_unstable();
        items.dedup();
        Self(items.into_boxed_slice())
    }
}

impl<'s, T> IntoIterator for &'s SortedSet<T> {
    type Item = &'s T;
    type IntoIter = std::slice::Iter<'s, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'de, T: Deserialize<'de> + Ord> Deserialize<'de> for SortedSet<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Vec::<T>::deserialize(from)?.into_iter().collect())
    }
}

impl<T: serde::Serialize> serde::Serialize for SortedSet<T> {
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
            let (sorted, tree): (SortedSet<String>, BTreeSet<String>) =
                (items.iter().cloned().collect(), items.into_iter().collect());
            prop_assert_eq!(sorted.contains(asked.as_str()), tree.contains(asked.as_str()));
            prop_assert_eq!(sorted.is_empty(), tree.is_empty());
            prop_assert!(sorted.iter().eq(tree.iter()));
        }
    }
}
