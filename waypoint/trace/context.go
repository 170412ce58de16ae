package trace

import (
	"encoding/hex"
	"math/rand/v2"
)

// Names of the fields of W3C Trace Context.
const (
	Parent = "traceparent"
	State  = "tracestate"
)

// Context is what a traceparent says: which trace a request is part of, and which span it comes from.
type Context struct {
	Trace [16]byte
	Span  [8]byte
	// Flags are those that version 00 knows.
	Flags byte
}

// FlagSampled is in Flags if the caller records the trace.
const FlagSampled = 1

// Sampled tells whether the caller records the trace.
func (c *Context) Sampled() bool { return c.Flags&FlagSampled != 0 }

// TraceID is the trace as logs have it; "" for none.
func (c *Context) TraceID() string {
	if c.Trace == [16]byte{} {
		return ""
	}
	return hex.EncodeToString(c.Trace[:])
}

// parentSize is the length of a traceparent of version 00.
const parentSize = 55

// Parse reads a traceparent (W3C Trace Context section 3.2). It returns false for one that must be ignored.
func Parse(s string) (Context, bool) {
	var c Context
	if len(s) < parentSize || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return c, false
	}
	switch version := s[:2]; {
	case version == "00":
		if len(s) != parentSize {
			return c, false
		}
	case version == "ff", !lowerHex(version), len(s) > parentSize && s[parentSize] != '-':
		return c, false
	}
	var flags [1]byte
	for _, part := range [...]struct {
		to   []byte
		text string
	}{{c.Trace[:], s[3:35]}, {c.Span[:], s[36:52]}, {flags[:], s[53:55]}} {
		if !lowerHex(part.text) {
			return Context{}, false
		}
		for i := range part.to {
			part.to[i] = digit(part.text[2*i])<<4 | digit(part.text[2*i+1])
		}
	}
	if c.Trace == [16]byte{} || c.Span == [8]byte{} {
		return Context{}, false
	}
	c.Flags = flags[0] & FlagSampled
	return c, true
}

func lowerHex(s string) bool {
	for i := range len(s) {
		if b := s[i]; (b < '0' || b > '9') && (b < 'a' || b > 'f') {
			return false
		}
	}
	return true
}

// digit is the value of a digit that lowerHex takes.
func digit(b byte) byte {
	if b <= '9' {
		return b - '0'
	}
	return b - 'a' + 10
}

// String is the traceparent.
func (c *Context) String() string {
	b := make([]byte, 0, parentSize)
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, c.Trace[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, c.Span[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, []byte{c.Flags})
	return string(b)
}

// newTrace makes the ids of a trace that begins here.
func (c *Context) newTrace() {
	for c.Trace == [16]byte{} {
		fill(c.Trace[:8])
		fill(c.Trace[8:])
	}
}

// newSpan makes the id of a span.
func (c *Context) newSpan() {
	c.Span = [8]byte{}
	for c.Span == [8]byte{} {
		fill(c.Span[:])
	}
}

func fill(b []byte) {
	n := rand.Uint64()
	for i := range b {
		b[i] = byte(n >> (8 * i))
	}
}
