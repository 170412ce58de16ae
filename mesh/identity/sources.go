package identity

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"
)

// filePoll is how often files are looked at. Polling sees every way in which a file is replaced, mounted config maps included,
// and costs one stat.
const filePoll = time.Second

// emptyHold is how long a file of revocation lists must have been empty until that lifts what was revoked: whoever writes the
// file in place empties it first.
const emptyHold = 10 * time.Second

// maxTrustFile bounds a file of roots or revocation lists, in bytes. A config map holds 1 MiB.
const maxTrustFile = 64 << 20

// bundleSource is the source of roots from the file.
type bundleSource struct{}

// Files are the files that a Trust is fed from while they change.
type Files struct {
	// Trust takes what they hold. Required.
	Trust *Trust
	// Bundle is a PEM file of roots that are trusted beside those that come with certificates, such as the mesh's mounted
	// config map. It may be missing. Empty: none.
	Bundle string
	// CRL is a file for ParseCRL. It may be missing at first; once it was there, its last good content holds. A change is taken
	// when it has stayed for a second, so that half of a file that is written in place lifts no revocation, and that it is empty
	// now when it has stayed so for ten. Empty: none.
	CRL string
	// StrictCRL is ParseCRL's strict.
	StrictCRL bool
	// OnBundle, if set, is called by Run after the roots in the file have changed, OnCRL after the revocation lists have.
	OnBundle, OnCRL func()
	// Logger takes what has changed, and what cannot be read. Required.
	Logger *slog.Logger

	bundle, crl watchedFile
	due         map[string]bool // issuers whose list is known to be out of date
}

// watchedFile is what is known of a file.
type watchedFile struct {
	info   fs.FileInfo // of what was last read; nil: it is not there, or was not looked at
	failed string      // what was last logged

	next  fs.FileInfo // of a change that is to stay for a time before it is read; nil: none
	since time.Time   // when that was first seen
}

// Load reads the files for the first time. A file that is there and cannot be understood is an error: it might revoke
// somebody.
func (f *Files) Load() error {
	if _, err := f.readBundle(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch _, err := f.readCRL(true); {
	case errors.Is(err, fs.ErrNotExist):
		f.Logger.Info("no revocation lists: the file is not there (yet)", "path", f.CRL)
	case err != nil:
		return err
	}
	return nil
}

// Run takes changes of the files, about a second after they were made, until ctx ends. What cannot be read or understood is
// logged, and what was there before holds. Call Load before it, and Run once.
func (f *Files) Run(ctx context.Context) error {
	tick := time.NewTicker(filePoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if changed, err := f.readBundle(); f.report(&f.bundle, f.Bundle, "roots", err) && changed && f.OnBundle != nil {
			f.OnBundle()
		}
		if changed, err := f.readCRL(false); f.report(&f.crl, f.CRL, "revocation lists", err) && changed && f.OnCRL != nil {
			f.OnCRL()
		}
		f.Trust.expire(time.Now())
		f.remind()
	}
}

// report logs a failure once, and tells whether there was none.
func (f *Files) report(w *watchedFile, path, what string, err error) bool {
	if err == nil {
		w.failed = ""
		return true
	}
	if text := err.Error(); text != w.failed && (w.info != nil || !errors.Is(err, fs.ErrNotExist)) {
		w.failed = text
		f.Logger.Error(what+" not read; those that there were hold", "path", path, "error", err)
	}
	return false
}

// remind logs, once, that a list is out of date.
func (f *Files) remind() {
	now := time.Now()
	for _, l := range f.Trust.CRL().Lists() {
		late := !l.NextUpdate.IsZero() && now.After(l.NextUpdate)
		if late && !f.due[l.Issuer] {
			f.Logger.Error("a revocation list is out of date; what it revokes stays revoked", "issuer", l.Issuer,
				"next_update", l.NextUpdate, "others_refused", f.StrictCRL)
		}
		if f.due == nil {
			f.due = map[string]bool{}
		}
		f.due[l.Issuer] = late
	}
}

// readBundle takes the roots, if the file has changed.
func (f *Files) readBundle() (changed bool, err error) {
	text, err := f.bundle.read(f.Bundle, 0, 0)
	if text == nil || err != nil {
		return false, err
	}
	roots, err := parseCertificates(text)
	if err != nil {
		return false, fmt.Errorf("trust bundle %s: %w", f.Bundle, err)
	}
	before := f.Trust.source(bundleSource{})
	f.Trust.setRoots(bundleSource{}, roots)
	if equalCertificates(before, roots) {
		return false, nil
	}
	f.Logger.Info("roots read", "path", f.Bundle, "certificates", len(roots))
	return true, nil
}

// readCRL takes the revocation lists, if the file has changed and stays so.
func (f *Files) readCRL(first bool) (changed bool, err error) {
	stay, stayEmpty := filePoll, emptyHold
	if first {
		stay, stayEmpty = 0, 0
	}
	text, err := f.crl.read(f.CRL, stay, stayEmpty)
	if text == nil || err != nil {
		return false, err
	}
	crl, err := ParseCRL(text, f.StrictCRL)
	if err != nil {
		return false, fmt.Errorf("revocation lists %s: %w", f.CRL, err)
	}
	f.Trust.SetCRL(crl)
	f.due = nil
	f.Logger.Info("revocation lists read", "path", f.CRL, "lists", len(crl.Lists()))
	return true, nil
}

// read returns what is in a file if it has changed since the last call that returned something, and the change has stayed as
// it is, else nil.
func (w *watchedFile) read(path string, stay, stayEmpty time.Duration) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		w.next = nil
		return nil, err
	}
	if unchanged(w.info, info) {
		w.next = nil
		return nil, nil
	}
	if !unchanged(w.next, info) {
		w.next, w.since = info, time.Now()
	}
	if info.Size() == 0 {
		stay = stayEmpty
	}
	if time.Since(w.since) < stay {
		return nil, nil
	}
	if info.Size() > maxTrustFile {
		return nil, fmt.Errorf("read %s: %d bytes, at most %d", path, info.Size(), maxTrustFile)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if int64(len(text)) != info.Size() {
		return nil, nil // it is being written; the next look sees another size
	}
	w.info, w.next = info, nil
	if text == nil {
		text = []byte{}
	}
	return text, nil
}

// unchanged reports whether a file is the one that was seen before.
func unchanged(before, now fs.FileInfo) bool {
	return before != nil && os.SameFile(before, now) && before.ModTime().Equal(now.ModTime()) && before.Size() == now.Size()
}
