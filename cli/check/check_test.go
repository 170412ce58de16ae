package check

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"
)

func TestAtLeast(t *testing.T) {
	for _, test := range []struct {
		version    string
		yes, known bool
	}{
		{"v1.30.0", true, true}, {"v1.37.2-gke.1", true, true}, {"v2.0.0", true, true}, {"v1.29.15", false, true}, {"v0.99", false, true},
		{"1.30+", true, true}, {"unknown", false, false}, {"", false, false},
	} {
		if yes, known := atLeast(test.version, [2]int{1, 30}); yes != test.yes || known != test.known {
			t.Errorf("%q: %v, %v", test.version, yes, known)
		}
	}
}

func TestRootExpiry(t *testing.T) {
	now := time.Date(2030, 5, 1, 0, 0, 0, 0, time.UTC)
	root := func(until time.Time) string {
		key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: until}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	day := 24 * time.Hour
	for name, test := range map[string]struct {
		bundle  string
		verdict Verdict
		message string
	}{
		"good":             {root(now.Add(400 * day)), OK, "good until 2031-06-05"},
		"soon":             {root(now.Add(89 * day)), Warn, "expires on 2030-07-29"},
		"over":             {root(now.Add(-day)), Fail, "expired on 2030-04-30"},
		"while replaced":   {root(now.Add(-day)) + root(now.Add(400*day)), OK, "good until 2031-06-05"},
		"empty":            {"", Fail, "has no certificate"},
		"not certificates": {string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})), Fail, "cannot be read"},
	} {
		c := &checker{mesh: "m"}
		c.group("g")
		c.rootExpiry([]byte(test.bundle), now)
		got := c.Groups[0].Results
		if len(got) != 1 || got[0].Verdict != test.verdict || !strings.Contains(got[0].Message, test.message) || (got[0].Hint == "") != (test.verdict == OK) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestVerdict(t *testing.T) {
	var r Report
	r.group("a")
	r.ok("fine")
	r.close()
	if r.Verdict != OK {
		t.Errorf("one ok: %s", r.Verdict)
	}
	r.warn("h", "hm")
	r.close()
	if r.Verdict != Warn {
		t.Errorf("a warning: %s", r.Verdict)
	}
	r.fail("h", "no")
	r.group("b")
	r.ok("fine")
	r.close()
	if r.Verdict != Fail {
		t.Errorf("a failure before an ok: %s", r.Verdict)
	}
}

func TestFew(t *testing.T) {
	if got := few([]string{"a", "b", "c", "d", "e", "f", "g"}); got != "a, b, c, d, e and 2 more" {
		t.Errorf("%q", got)
	}
}
