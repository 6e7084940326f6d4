def test_it(customer, admin, engine, api):
    r = customer.get("/account"); print(r.text); assert r.status_code == 200
    for p in ("/subscription","/credits","/credits/grants","/credits/transactions","/invoices","/payments","/bank-transfers","/sites","/api-keys","/plans"):
        r = customer.get(p); print(p, r.text); assert r.status_code == 200
    r = customer.post("/invoices", {"plan":"starter","payment_method":"sandbox"}, key="a"); print(r.text, r.headers); assert r.status_code == 202
    res = engine.finish(r.json["operation_id"]); print(res)
    r = customer.get("/invoices/"+res["invoice_id"]); print(r.text)
    r = customer.post("/credits/consume", {"amount": 3}, key="x"); print(r.text); assert r.status_code==200
    for p in ("/admin/accounts","/admin/operations","/admin/bank-transfers"):
        r = admin.get(p); print(p, r.text); assert r.status_code == 200
    print(api._client.get("/readyz").text); print(api._client.get("/metrics").text[:6000])
    print(api._client.get("/docs").text[:100])
    r = api.post("/signup", {"email":"a"}); print(r.text)
    assert 0
