// Package cache builds the programs that a cluster consists of, once, and keeps them.
//
// An entry is named by its recipe: what is built, with which flags, from which versions, by which compiler. It appears in
// the cache whole or not at all, and every use compares all its files with the checksums in its manifest: a damaged entry
// is thrown away and built again.
package cache
