package admin

import (
	"bufio"
	"encoding/json"
	"io"
	"iter"
)

// Stream writes one large JSON object member by member, so that it is never whole in memory. After an error, which is the
// reader's, the rest is not written. Close ends the object.
type Stream struct {
	w    *bufio.Writer
	err  error
	some bool // a member has been written
}

// NewStream begins an object.
func NewStream(w io.Writer) *Stream {
	s := &Stream{w: bufio.NewWriterSize(w, 32<<10)}
	s.text("{")
	return s
}

// Close ends the object and tells whether all of it was written.
func (s *Stream) Close() error {
	s.text("\n}\n")
	if s.err == nil {
		s.err = s.w.Flush()
	}
	return s.err
}

// Member writes a member whose value is small.
func (s *Stream) Member(name string, value any) {
	s.begin(name)
	s.value(value, "  ")
}

// List writes a member that is an array, taking its elements one by one.
func List[T any](s *Stream, name string, elements iter.Seq[T]) {
	s.begin(name)
	separator := "["
	for e := range elements {
		if s.err != nil {
			return
		}
		s.text(separator + "\n    ")
		s.value(e, "    ")
		separator = ","
	}
	s.end(separator, "[", "]")
}

// Map writes a member that is an object, taking its members one by one.
func Map[T any](s *Stream, name string, members iter.Seq2[string, T]) {
	s.begin(name)
	separator := "{"
	for key, value := range members {
		if s.err != nil {
			return
		}
		s.text(separator + "\n    ")
		s.value(key, "")
		s.text(": ")
		s.value(value, "    ")
		separator = ","
	}
	s.end(separator, "{", "}")
}

// begin writes the name of a member.
func (s *Stream) begin(name string) {
	if s.some {
		s.text(",")
	}
	s.some = true
	s.text("\n  ")
	s.value(name, "")
	s.text(": ")
}

// end closes a list or map, of which the separator tells whether it has elements.
func (s *Stream) end(separator, opening, closing string) {
	if separator == opening {
		s.text(opening + closing)
		return
	}
	s.text("\n  " + closing)
}

func (s *Stream) text(text string) {
	if s.err == nil {
		_, s.err = s.w.WriteString(text)
	}
}

func (s *Stream) value(v any, prefix string) {
	if s.err != nil {
		return
	}
	text, err := json.MarshalIndent(v, prefix, "  ")
	if err != nil {
		s.err = err
		return
	}
	_, s.err = s.w.Write(text)
}
