package codec

import (
	"bytes"
	"testing"
)

// tally is a MessageCounter.
type tally struct{ received, sent int }

func (t *tally) Messages(received bool, n int) {
	if received {
		t.received += n
	} else {
		t.sent += n
	}
}

// TestMessages: messages are counted wherever their bytes are divided, each once it is whole.
func TestMessages(t *testing.T) {
	message := func(n int) []byte {
		return append([]byte{0, 0, byte(n >> 16), byte(n >> 8), byte(n)}, make([]byte, n)...)
	}
	body := bytes.Join([][]byte{message(3), message(0), message(300), message(0), message(70_000)}, nil)
	for _, size := range []int{1, 2, 4, 5, 6, 299, 65_536, len(body)} {
		var got tally
		m := &messages{counter: &got, received: true}
		for at := 0; at < len(body); at += size {
			m.scan(body[at:min(at+size, len(body))])
			if last := at+size >= len(body); !last && got.received == 5 {
				t.Fatalf("pieces of %d: the last message is counted before its end", size)
			}
		}
		if got != (tally{received: 5}) {
			t.Errorf("pieces of %d: %+v, want 5 received", size, got)
		}
		m.scan(message(9)[:13])
		if got.received != 5 {
			t.Errorf("pieces of %d: part of a message counts", size)
		}
	}
}
