package saved

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
)

// A file is a line of JSON (the header) and then records, each of which is: the length of its body (4 bytes, little endian),
// the CRC-32C of all that follows (4), what it is (1), the index of its type in the header (1), and its body: an
// envoy.service.discovery.v3.Resource, or the name of one that is gone. Later records win.
const (
	format     = 1
	recordHead = 10
	// maxRecord bounds a body, so that a length that was damaged costs no memory.
	maxRecord = 64 << 20
)

// What a record is.
const (
	upsert  byte = 1
	removal byte = 2
)

// headerLine is the first line.
type headerLine struct {
	Format int      `json:"format"`
	Owner  string   `json:"owner"`
	Types  []string `json:"types"`
}

func header(cfg Config) []byte {
	b, err := json.Marshal(headerLine{Format: format, Owner: cfg.Owner, Types: cfg.Types})
	if err != nil {
		panic(err) // strings and a number
	}
	return append(b, '\n')
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendRecord(b []byte, what, kind byte, body []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	sum := crc32.Update(crc32.Checksum([]byte{what, kind}, castagnoli), castagnoli, body)
	b = binary.LittleEndian.AppendUint32(b, sum)
	b = append(b, what, kind)
	return append(b, body...)
}

// errDamaged is why the rest of a file is not read: it was cut off, or its checksum is wrong.
var errDamaged = errors.New("damaged")

// read returns what a file holds, up to where it is damaged. A file of another format, or of another owner, is an error.
func read(path string, cfg Config) (*Contents, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	r := bufio.NewReaderSize(f, 1<<16)
	line, err := r.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("%s: header: %w", path, errDamaged)
	}
	var h headerLine
	if err := json.Unmarshal(line, &h); err != nil {
		return nil, fmt.Errorf("%s: header: %w", path, errDamaged)
	}
	if h.Format != format {
		return nil, fmt.Errorf("%s: format %d, this release reads %d", path, h.Format, format)
	}
	if h.Owner != cfg.Owner {
		return nil, fmt.Errorf("%s: it is of %q, this is %q", path, h.Owner, cfg.Owner)
	}
	all := make([]map[string]*discoveryv3.Resource, len(h.Types))
	for i := range all {
		all[i] = map[string]*discoveryv3.Resource{}
	}
	for {
		what, kind, body, err := readRecord(r)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = apply(all, what, kind, body)
		}
		if err != nil {
			cfg.Logger.Warn("the end of what is saved of the configuration is not used; what came before it is", "path", path, "error", err)
			break
		}
	}
	c := &Contents{At: info.ModTime()}
	for _, t := range cfg.Types {
		var list []*discoveryv3.Resource
		if i := slices.Index(h.Types, t); i >= 0 {
			for _, r := range all[i] {
				list = append(list, r)
			}
		}
		c.Resources = append(c.Resources, list)
	}
	if c.Count() == 0 {
		return nil, nil
	}
	return c, nil
}

func apply(all []map[string]*discoveryv3.Resource, what, kind byte, body []byte) error {
	if int(kind) >= len(all) {
		return fmt.Errorf("%w: type %d of %d", errDamaged, kind, len(all))
	}
	switch what {
	case upsert:
		r := &discoveryv3.Resource{}
		if err := proto.Unmarshal(body, r); err != nil {
			return fmt.Errorf("%w: %w", errDamaged, err)
		}
		all[kind][r.GetName()] = r
	case removal:
		delete(all[kind], string(body))
	default:
		return fmt.Errorf("%w: record of kind %d", errDamaged, what)
	}
	return nil
}

// readRecord returns io.EOF at the end of the file, where a record would begin.
func readRecord(r io.Reader) (what, kind byte, body []byte, err error) {
	var head [recordHead]byte
	if _, err := io.ReadFull(r, head[:]); errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, 0, nil, fmt.Errorf("%w: cut off", errDamaged)
	} else if err != nil {
		return 0, 0, nil, err
	}
	n := binary.LittleEndian.Uint32(head[:4])
	if n > maxRecord {
		return 0, 0, nil, fmt.Errorf("%w: record of %d bytes", errDamaged, n)
	}
	var buf bytes.Buffer
	if _, err := io.CopyN(&buf, r, int64(n)); err != nil {
		return 0, 0, nil, fmt.Errorf("%w: cut off", errDamaged)
	}
	sum := crc32.Update(crc32.Checksum(head[8:10], castagnoli), castagnoli, buf.Bytes())
	if sum != binary.LittleEndian.Uint32(head[4:8]) {
		return 0, 0, nil, fmt.Errorf("%w: wrong checksum", errDamaged)
	}
	return head[8], head[9], buf.Bytes(), nil
}
