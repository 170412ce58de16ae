package codec

import "encoding/binary"

// MessageCounter is told of the messages of gRPC that the client sent (received) or was sent. It is called by whoever carries the
// bytes, perhaps for both directions at once, and must not block.
type MessageCounter interface{ Messages(received bool, n int) }

// prefixSize is how many bytes come before each message of gRPC: whether it is compressed, and its length.
const prefixSize = 5

// messages counts the messages of gRPC in a body, which may come in any pieces: each once its last byte was seen. A nil one counts
// nothing.
type messages struct {
	counter  MessageCounter
	received bool

	prefix [prefixSize]byte
	have   int    // bytes of prefix
	left   uint32 // bytes of the message behind it
}

// scan looks at the next piece.
func (m *messages) scan(p []byte) {
	if m == nil {
		return
	}
	n := 0
	for len(p) > 0 {
		if m.have < prefixSize {
			k := copy(m.prefix[m.have:], p)
			m.have, p = m.have+k, p[k:]
			if m.have < prefixSize {
				break
			}
			m.left = binary.BigEndian.Uint32(m.prefix[1:])
		}
		k := min(uint64(m.left), uint64(len(p)))
		m.left, p = m.left-uint32(k), p[k:]
		if m.left == 0 {
			m.have = 0
			n++
		}
	}
	if n > 0 {
		m.counter.Messages(m.received, n)
	}
}
