package scenarios

import (
	"errors"
	"io"
	"strings"
)

// newLine is a request body of one line, after which the client has ended.
func newLine(line string) io.ReadCloser { return io.NopCloser(strings.NewReader(line)) }

// readAll reads to the end or until the buffer is full.
func readAll(r io.Reader, buffer []byte) (int, error) {
	n, err := io.ReadFull(r, buffer)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return n, err
}
