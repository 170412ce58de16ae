package config

import "crypto/fips140"

// Values of COMPLIANCE_POLICY, by Istio's names.
const (
	compliancePQC     = "pqc"
	complianceFIPS140 = "fips-140-2"
	complianceFIPS    = "fips-140-3"
)

// identity reads what certificates and handshakes are subject to.
func (e *env) identity(c *Config) {
	c.TrustBundle = e.text("AMBIT_TRUST_BUNDLE", DefaultRootCA)
	c.CRLPath = e.text("CRL_PATH", "")
	c.StrictCRL = e.choice("AMBIT_CRL_EXPIRED", "enforce", "enforce", "refuse") == "refuse"
	switch e.choice("COMPLIANCE_POLICY", "", "", compliancePQC, complianceFIPS140, complianceFIPS) {
	case compliancePQC:
		c.PostQuantumOnly = true
		c.XDS.PostQuantumOnly, c.CA.PostQuantumOnly = true, true
	case complianceFIPS140, complianceFIPS:
		if !fips140.Enabled() {
			e.fail("COMPLIANCE_POLICY", "%q needs Go's FIPS 140-3 mode: set GODEBUG=fips140=on, or build with GOFIPS140", e.vars["COMPLIANCE_POLICY"])
		}
	}
}
