// Package buffer lends byte buffers of a few sizes. Whoever takes one gives it back as soon as nothing is in it: what only
// waits holds none. It knows nothing of what is in them.
package buffer

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// Sizes in bytes. They are a little more than powers of two, so that a whole TLS record (16,384 bytes of payload, RFC 8446
// section 5.1) or several of them fit with their headers and tags.
const (
	Tiny   = 2 << 10
	Small  = 18 << 10  // one TLS record
	Medium = 72 << 10  // four
	Large  = 264 << 10 // sixteen
)

var (
	tiny, small, medium, large sync.Pool

	inUse atomic.Int64
)

// Get lends a buffer of the smallest size that is at least n, or of Large if there is none. Its length is its size.
func Get(n int) []byte {
	var b []byte
	switch {
	case n <= Tiny:
		if p, _ := tiny.Get().(*[Tiny]byte); p != nil {
			b = p[:]
		} else {
			b = new([Tiny]byte)[:]
		}
	case n <= Small:
		if p, _ := small.Get().(*[Small]byte); p != nil {
			b = p[:]
		} else {
			b = new([Small]byte)[:]
		}
	case n <= Medium:
		if p, _ := medium.Get().(*[Medium]byte); p != nil {
			b = p[:]
		} else {
			b = new([Medium]byte)[:]
		}
	default:
		if p, _ := large.Get().(*[Large]byte); p != nil {
			b = p[:]
		} else {
			b = new([Large]byte)[:]
		}
	}
	inUse.Add(int64(len(b)))
	lent(b)
	return b
}

// Put takes back a buffer of Get, of any length but from its first byte on. Nil is allowed and does nothing. The caller
// must not use the buffer any more.
func Put(b []byte) {
	if cap(b) == 0 {
		return
	}
	given(b[:cap(b)])
	switch cap(b) {
	case Tiny:
		tiny.Put((*[Tiny]byte)(b[:Tiny]))
	case Small:
		small.Put((*[Small]byte)(b[:Small]))
	case Medium:
		medium.Put((*[Medium]byte)(b[:Medium]))
	case Large:
		large.Put((*[Large]byte)(b[:Large]))
	default:
		panic(fmt.Sprintf("buffer: not one of ours: capacity %d", cap(b)))
	}
	inUse.Add(-int64(cap(b)))
}

// Leave is Put of a buffer that somebody may still use: it is lent to nobody else, and garbage collection ends it.
func Leave(b []byte) { inUse.Add(-int64(cap(b))) }

// InUse returns the bytes that are lent at the moment.
func InUse() int64 { return inUse.Load() }
