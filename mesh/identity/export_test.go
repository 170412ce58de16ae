package identity

// WithTrust is withTrust, with the SVID's roots added as Manager adds them.
func WithTrust(s *SVID, t *Trust) *SVID {
	t.setRoots(s.Identity, s.roots)
	return s.withTrust(t)
}

// Withdraw takes away what an identity has brought to the union.
func Withdraw(t *Trust, id Identity) { t.setRoots(id, nil) }
