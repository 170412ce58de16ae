// Package saved keeps the last good configuration on disk: the resources that discovery has told, as they came. A proxy that
// starts while the control plane is away serves from it.
//
// Rules of the room: there are no secrets in it. A file is good as far as its checksums say. It is written in the background,
// what has changed within a second at once, and rewritten only when half of it is out of date, so that its cost is bounded
// by what changes; a disk that fails is told of once, is tried again, and is in nobody's way. Each process writes a file of its own and puts
// it in place when it knows everything; who finds another's there writes no more. Who finds none there, since the mesh was taken from the
// node, is about to end, and puts it in place again only if it goes on to live.
package saved

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/mesh/xds"
)

// Limits.
const (
	// flushInterval is how long changes are gathered.
	flushInterval = time.Second
	// stampInterval is how often the file's time is set while the control plane is there.
	stampInterval = 15 * time.Second
	// retryInterval is how long a disk that failed is left alone.
	retryInterval = 5 * time.Second
	// restoreAfter is how long the control plane must have been there since the file was found gone, until it is put in place
	// again. An uninstall is over by then.
	restoreAfter = 5 * time.Minute
	// slack is how many bytes out of date a file may have in any case.
	slack = 1 << 20
)

// Config configures a Store.
type Config struct {
	// Dir is the folder, which is made if need be. Required.
	Dir string
	// Owner says whose configuration it is. What another owner has saved is not used.
	Owner string
	// Types are the type URLs to keep, in the order in which they are to be applied. Required.
	Types []string
	// Unsettled, if set, tells whether what a resource was before is in force still beside what it is now, since something that
	// belongs to it has not come. Until that ends the former state stays saved. It is called from several goroutines.
	Unsettled func(typeURL, name string) bool
	// Logger takes failures. Required.
	Logger *slog.Logger
}

// Store is one process's file. Note may be called concurrently with everything else; the others are for one goroutine.
type Store struct {
	cfg Config

	mu      sync.Mutex // guards what follows
	pending map[key]*discoveryv3.Resource
	held    map[key]*discoveryv3.Resource // is to be pending once it is settled
	closed  bool                          // nothing is gathered any more

	// Owned by Run, and by Open before it.
	file       *os.File
	end        int64
	live       int64
	index      map[key]place
	complete   bool          // everything is known: the file is to be put in place
	placed     bool          // the file has its name
	superseded bool          // another process has taken over
	gone       bool          // the file was removed
	present    time.Duration // how long the control plane was there since
	failing    bool          // what is gathered could not be written
	retryAt    time.Time
}

// key names a resource: its type is the index in Config.Types.
type key struct {
	kind byte
	name string
}

// place is where a record is in the file.
type place struct {
	offset int64
	size   uint32
}

// Contents is what was saved.
type Contents struct {
	// Resources by type, in the order of Config.Types.
	Resources [][]*discoveryv3.Resource
	// At is when the control plane was last heard of.
	At time.Time
}

// Count is how many resources there are.
func (c *Contents) Count() int {
	n := 0
	for _, r := range c.Resources {
		n += len(r)
	}
	return n
}

// Open reads what was saved, nil if there is nothing that can be used, and begins a new file. The caller closes the Store,
// after Run has returned.
func Open(cfg Config) (*Store, *Contents, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("saved configuration: %w", err)
	}
	contents, err := read(filepath.Join(cfg.Dir, api.StateFile), cfg)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		cfg.Logger.Warn("what is saved of the configuration is not used", "dir", cfg.Dir, "error", err)
	}
	s := &Store{cfg: cfg, pending: map[key]*discoveryv3.Resource{}, held: map[key]*discoveryv3.Resource{}, index: map[key]place{}}
	s.clear()
	if s.file, s.end, err = s.begin(); err != nil {
		return nil, nil, fmt.Errorf("saved configuration: %w", err)
	}
	return s, contents, nil
}

// clear removes files of processes that are gone.
func (s *Store) clear() {
	entries, _ := os.ReadDir(s.cfg.Dir) // Open has just made it, or will say what is wrong with it
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), api.StatePrefix) {
			continue
		}
		path := filepath.Join(s.cfg.Dir, e.Name())
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.Remove(path)
		}
		f.Close()
	}
}

// begin makes an empty file, which is locked as long as its process lives.
func (s *Store) begin() (*os.File, int64, error) {
	f, err := os.CreateTemp(s.cfg.Dir, api.StatePrefix)
	if err != nil {
		return nil, 0, err
	}
	header := header(s.cfg)
	_, err = f.Write(header)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		f.Close()
		os.Remove(f.Name())
		return nil, 0, err
	}
	return f, int64(len(header)), nil
}

// Wrap returns a handler that does what h does, and has what it accepts saved, and what it rejects but has put in force.
func (s *Store) Wrap(h xds.Handler) xds.Handler {
	apply := h.Apply
	h.Apply = func(upserts []*discoveryv3.Resource, removed []string) []xds.Rejection {
		rejections := apply(upserts, removed)
		s.note(h.TypeURL, upserts, removed, rejections)
		return rejections
	}
	return h
}

// note gathers a change. What is rejected is left as it was, since that is still in force, unless it was replaced: then the
// next process is to reject it again, and fail closed as this one does.
func (s *Store) note(typeURL string, upserts []*discoveryv3.Resource, removed []string, rejections []xds.Rejection) {
	kind := slices.Index(s.cfg.Types, typeURL)
	if kind < 0 {
		return
	}
	rejected := map[string]bool{}
	for _, r := range rejections {
		rejected[r.Name] = !r.Replaced
	}
	unsettled := map[string]bool{}
	if s.cfg.Unsettled != nil {
		for _, r := range upserts {
			unsettled[r.GetName()] = s.cfg.Unsettled(typeURL, r.GetName())
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	for _, name := range removed {
		s.gather(key{byte(kind), name}, nil)
	}
	for _, r := range upserts {
		k := key{byte(kind), r.GetName()}
		switch {
		case rejected[k.name]:
		case unsettled[k.name]:
			s.held[k] = r
		default:
			s.gather(k, r)
		}
	}
}

// gather has a change written, with s.mu held. Former ones do not matter any more.
func (s *Store) gather(k key, r *discoveryv3.Resource) {
	delete(s.held, k)
	s.pending[k] = r
}

// settle gathers what was held and is settled.
func (s *Store) settle() {
	s.mu.Lock()
	held := maps.Clone(s.held)
	s.mu.Unlock()
	for k, r := range held {
		if s.cfg.Unsettled(s.cfg.Types[k.kind], k.name) {
			continue
		}
		s.mu.Lock()
		if s.held[k] == r {
			s.gather(k, r)
		}
		s.mu.Unlock()
	}
}

// Run writes what is gathered, until the context ends, and once more then. The file is put in place when synced is closed.
// connected tells whether the control plane is there. It returns early if another process has taken over. What comes after it
// is not saved.
func (s *Store) Run(ctx context.Context, synced <-chan struct{}, connected func() bool) error {
	flush := time.NewTicker(flushInterval)
	defer flush.Stop()
	defer s.stop()
	var stamped time.Time
	for done := false; !done && !s.superseded; {
		select {
		case <-flush.C:
		case <-synced:
			synced = nil
			s.complete = true
		case <-ctx.Done():
			done = true
			s.retryAt = time.Time{}
		}
		s.save()
		if time.Since(stamped) < stampInterval {
			continue
		}
		stamped = time.Now()
		switch there := connected(); {
		case !s.placed || s.failing:
		case !there:
			s.present = 0
		case s.gone:
			s.restore()
		default:
			s.stamp(stamped)
		}
	}
	return nil
}

// stop has note gather no more.
func (s *Store) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed, s.pending, s.held = true, nil, nil
}

// Close gives the file up; it stays if it is in place.
func (s *Store) Close() error {
	if !s.placed {
		os.Remove(s.file.Name())
	}
	return s.file.Close()
}

func (s *Store) path() string { return filepath.Join(s.cfg.Dir, api.StateFile) }

// save writes what is gathered, and puts the file in place when it is time. A failure is told of once, and tried again later.
func (s *Store) save() {
	if time.Now().Before(s.retryAt) {
		return
	}
	err := s.write()
	if err == nil && s.complete && !s.placed && !s.superseded {
		err = s.place()
	}
	switch {
	case err != nil && !s.failing:
		s.cfg.Logger.Error("the configuration cannot be saved, which is tried again; should this proxy start again while the control plane is away, it has none or an old one",
			"dir", s.cfg.Dir, "error", err)
	case err == nil && s.failing:
		s.cfg.Logger.Info("the configuration is saved again", "dir", s.cfg.Dir)
	}
	if s.failing = err != nil; s.failing {
		s.retryAt = time.Now().Add(retryInterval)
	}
}

// write appends what is gathered. What cannot be written is gathered still.
func (s *Store) write() error {
	s.settle()
	s.mu.Lock()
	changes := s.pending
	if len(changes) > 0 {
		s.pending = map[key]*discoveryv3.Resource{}
	}
	s.mu.Unlock()
	if len(changes) == 0 && (s.gone || !s.wasteful()) {
		return nil
	}
	if s.placed && s.lost() {
		s.superseded = true
		s.stop()
		return nil
	}
	if err := s.append(changes); err != nil {
		s.takeBack(changes)
		return err
	}
	if s.wasteful() && !s.gone {
		return s.rewrite()
	}
	return nil
}

// wasteful tells whether too much of the file is out of date.
func (s *Store) wasteful() bool { return s.end-s.live > s.live+slack }

// takeBack gathers changes that were not written, but for what has changed again. That a resource is gone which the file has
// not is forgotten, so that what is gathered is bounded by what is live and what the file has.
func (s *Store) takeBack(changes map[key]*discoveryv3.Resource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, r := range changes {
		_, again := s.pending[k]
		_, had := s.index[k]
		if !again && (r != nil || had) {
			s.pending[k] = r
		}
	}
}

// append writes records in the order of types: policies come before what names them. If it fails, the file is as it was.
func (s *Store) append(changes map[key]*discoveryv3.Resource) error {
	keys := make([]key, 0, len(changes))
	for k := range changes {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b key) int { return int(a.kind) - int(b.kind) })
	if _, err := s.file.Seek(s.end, io.SeekStart); err != nil {
		return err
	}
	places, end, err := s.records(s.file, keys, changes)
	if err != nil {
		return errors.Join(err, s.file.Truncate(s.end)) // a part of a record would hide what comes after it
	}
	for k, p := range places {
		s.live += int64(p.size) - int64(s.index[k].size)
		if p.size == 0 {
			delete(s.index, k)
		} else {
			s.index[k] = p
		}
	}
	s.end = end
	return nil
}

// records writes changes to a file that ends where s.end is, and returns where they are, without size what is gone, and
// where the file ends then.
func (s *Store) records(f io.Writer, keys []key, changes map[key]*discoveryv3.Resource) (map[key]place, int64, error) {
	w := bufio.NewWriterSize(f, 1<<16)
	places, end := make(map[key]place, len(keys)), s.end
	var buf []byte
	for _, k := range keys {
		if resource := changes[k]; resource != nil {
			body, err := proto.Marshal(resource)
			if err != nil {
				return nil, 0, err
			}
			buf = appendRecord(buf[:0], upsert, k.kind, body)
			places[k] = place{end, uint32(len(buf))}
		} else if _, had := s.index[k]; had {
			buf = appendRecord(buf[:0], removal, k.kind, []byte(k.name))
			places[k] = place{}
		} else {
			continue
		}
		if _, err := w.Write(buf); err != nil {
			return nil, 0, err
		}
		end += int64(len(buf))
	}
	return places, end, w.Flush()
}

// rewrite makes a file of what is live.
func (s *Store) rewrite() error {
	fresh, end, err := s.begin()
	if err != nil {
		return err
	}
	keys := make([]key, 0, len(s.index))
	for k := range s.index {
		keys = append(keys, k)
	}
	// Their order in the file is that in which they were told.
	slices.SortFunc(keys, func(a, b key) int { return int(min(max(s.index[a].offset-s.index[b].offset, -1), 1)) })
	index := make(map[key]place, len(keys))
	w := bufio.NewWriterSize(fresh, 1<<16)
	for _, k := range keys {
		p := s.index[k]
		if _, err = io.Copy(w, io.NewSectionReader(s.file, p.offset, int64(p.size))); err != nil {
			break
		}
		index[k] = place{end, p.size}
		end += int64(p.size)
	}
	if err == nil {
		err = w.Flush()
	}
	if err == nil && s.placed {
		err = s.put(fresh)
	}
	if err != nil {
		fresh.Close()
		os.Remove(fresh.Name())
		return err
	}
	old := s.file
	s.file, s.index, s.end = fresh, index, end
	if !s.placed {
		os.Remove(old.Name())
	}
	old.Close() // nothing of it is needed
	return nil
}

// place puts the file in place of what is there.
func (s *Store) place() error {
	err := s.put(s.file)
	s.placed = err == nil
	return err
}

// put gives a file its name, in one step and only when the disk has it.
func (s *Store) put(f *os.File) error {
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(f.Name(), s.path())
}

// lost tells whether what is in place is not this process's any more but another's. It notes if there is nothing.
func (s *Store) lost() bool {
	there, err := os.Stat(s.path())
	if errors.Is(err, os.ErrNotExist) {
		if !s.gone {
			s.gone, s.present = true, 0
			s.cfg.Logger.Warn("the saved configuration was removed; it is saved again if this proxy goes on", "dir", s.cfg.Dir, "after", restoreAfter.String())
		}
		return false
	}
	if err != nil {
		return true
	}
	mine, err := s.file.Stat()
	return err != nil || !os.SameFile(mine, there)
}

// restore puts the file in place again once it is clear that this process stays. It is called at each stamp while the control plane is
// there.
func (s *Store) restore() {
	if s.lost() { // to a process that has started since
		s.superseded = true
		return
	}
	if s.present += stampInterval; s.present < restoreAfter {
		return
	}
	s.present = 0
	if err := s.rewrite(); err != nil {
		s.cfg.Logger.Error("the configuration cannot be saved again, which is tried later", "dir", s.cfg.Dir, "error", err)
		return
	}
	s.gone = false
	s.cfg.Logger.Info("the configuration is saved again", "dir", s.cfg.Dir)
}

// stamp says by the file's time that the control plane was there.
func (s *Store) stamp(now time.Time) {
	if !s.lost() && !s.gone {
		os.Chtimes(s.path(), now, now) // an older time only makes it look older
	}
}
