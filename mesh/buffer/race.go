//go:build race

package buffer

import (
	"bytes"
	"fmt"
)

// mark fills buffers that nobody has. Whoever still writes to one is a race with that, or is found when it is lent again; whoever still
// reads one finds this.
const mark = "given back buf! "

// given marks a buffer that is given back.
func given(b []byte) {
	if marked(b) {
		panic("buffer: given back twice")
	}
	for n := copy(b, mark); n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
}

// lent looks at a buffer that is lent: nobody has written to it since it was given back. A new one is zero.
func lent(b []byte) {
	if b[0] != 0 && !marked(b) {
		panic(fmt.Sprintf("buffer: written to after it was given back: %q", b[:64]))
	}
	clear(b[:len(mark)]) // it can be given back as it is
}

func marked(b []byte) bool {
	return string(b[:len(mark)]) == mark && bytes.Equal(b[len(mark):], b[:len(b)-len(mark)])
}
