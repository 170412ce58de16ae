package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestStream: what is written member by member is what the whole would be.
func TestStream(t *testing.T) {
	type element struct {
		Name  string
		Ports map[uint16]uint16
	}
	list := []element{{"a \"quoted\"", nil}, {"b", map[uint16]uint16{80: 8080, 443: 8443}}}
	whole := struct {
		List   []element      `json:"list"`
		None   []int          `json:"none"`
		Config map[string]any `json:"config"`
		Map    map[string]int `json:"map"`
		Empty  map[string]int `json:"empty"`
	}{list, []int{}, map[string]any{"k": []string{"v"}}, map[string]int{"one": 1}, map[string]int{}}
	want, err := json.MarshalIndent(whole, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	s := NewStream(&got)
	List(s, "list", slices.Values(list))
	List(s, "none", slices.Values(whole.None))
	s.Member("config", whole.Config)
	Map(s, "map", maps.All(whole.Map))
	Map(s, "empty", maps.All(whole.Empty))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want)+"\n", got.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

type brokenWriter struct{ left int }

var errBroken = errors.New("the reader has gone")

func (w *brokenWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errBroken
	}
	return len(p), nil
}

// TestStreamToNobody: a reader that goes ends the work for it.
func TestStreamToNobody(t *testing.T) {
	s := NewStream(&brokenWriter{left: 100_000})
	taken := 0
	List(s, "list", func(yield func(string) bool) {
		for range 1_000_000 {
			taken++
			if !yield("some text") {
				return
			}
		}
	})
	if err := s.Close(); !errors.Is(err, errBroken) {
		t.Errorf("Close: %v", err)
	}
	if taken > 20_000 {
		t.Errorf("%d elements were made for nobody", taken)
	}
}
